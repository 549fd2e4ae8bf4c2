"""``python -m scalablevit`` is the command ``scalablevit``."""

import sys

from scalablevit.cli import main

if __name__ == "__main__":
    sys.exit(main())
