"""The `mixpo` command; `python -m mixpo` where it is not on the path."""

import sys

from mixpo.signals import HANDLER


def main() -> int:
    """Run the command of this process; returns its exit status."""
    HANDLER.install()
    from mixpo.cli import main as command  # takes a second, in which Ctrl+C may come

    return command()


if __name__ == "__main__":
    sys.exit(main())
