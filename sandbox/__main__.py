"""`sandbox`, and `python -m sandbox`: from the first line on, an interrupt ends with the documented exit code."""

import signal
import sys
from types import FrameType

from sandbox.errors import EXIT_INTERRUPTED


def main() -> None:
    """Load the command line, which takes a while, and run it."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from sandbox import cli  # noqa: PLC0415 - here, so that Ctrl-C while it loads is answered too

        cli.main()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A polite end asked for by a CI system is handled as Ctrl-C: everything is unwound."""
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
