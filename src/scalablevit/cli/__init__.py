"""The command ``scalablevit``: one thin function per verb.

A user's mistake is one line on standard error and exit code 2. What a verb needs is imported when it runs, so that the
others work without it, and quickly.
"""

from scalablevit.cli.command import VERBS, build_parser, in_order, main, with_underscores
from scalablevit.cli.messages import known_options

__all__ = ["VERBS", "build_parser", "in_order", "known_options", "main", "with_underscores"]
