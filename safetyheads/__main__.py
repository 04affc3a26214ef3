"""What runs for `python -m safetyheads`? The command line: cli/main.py."""

import sys

from safetyheads.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
