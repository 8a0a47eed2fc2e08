"""The `mixpo` command; `python -m mixpo` where it is not on the path."""

import sys
import traceback
from types import TracebackType

from mixpo.masking import masked
from mixpo.signals import HANDLER


def main() -> int:
    """Run the command of this process; returns its exit status."""
    HANDLER.install()
    sys.excepthook = _print_traceback
    from mixpo.cli import main as command  # takes a second, in which Ctrl+C may come

    return command()


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(masked("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
