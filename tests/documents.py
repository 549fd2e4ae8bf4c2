"""Documents whose blocks are executed: what the blocks are, what they promise to print, and what they print."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scalablevit.cli import main as scalablevit
from scalablevit.sample.__main__ import main as sample

ROOT = Path(__file__).parent.parent


def read(document: str) -> str:
    """A document of the project."""
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[tuple[str, str]]:
    """The fenced blocks of these languages, each with its language."""
    return re.findall(rf"```({'|'.join(languages)})\n(.*?)```", text, flags=re.DOTALL)


def promised(block: str) -> list[str]:
    """The lines that a Python block says that it prints: comments behind a print, or on the lines that follow one."""
    lines: list[str] = []
    is_after_print = False
    for line in block.splitlines():
        if line.lstrip().startswith("print("):
            behind = re.search(r"\)  # (.*)$", line)
            lines += [behind.group(1)] if behind else []
            is_after_print = True
        elif is_after_print and line.startswith("# "):
            lines.append(line.removeprefix("# "))
        else:
            is_after_print = False
    return lines


def printed(block: str, namespace: dict[str, Any] | None = None) -> list[str]:
    """The lines that a Python block prints; `namespace` keeps its names for the next block."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(block, "document", "exec"), {} if namespace is None else namespace)
    return output.getvalue().splitlines()


def run_console(block: str, set_arguments: Callable[[list[str]], object]) -> str:
    """What the command lines of a block print: those of ``scalablevit`` and of its sample.

    Args:
        block: The lines.
        set_arguments: Puts a list in the place of `sys.argv`.
    """
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            if program == "scalablevit":
                assert not scalablevit(arguments), line
            else:
                assert (program, *arguments[:2]) == ("python", "-m", "scalablevit.sample")
                set_arguments([program, *arguments[2:]])
                assert not sample(), line
    return output.getvalue()
