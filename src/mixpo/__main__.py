"""`python -m mixpo`, where the `mixpo` command is not on the path."""

import sys

from mixpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
