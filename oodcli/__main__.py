"""Run the command line, also as ``python -m oodcli``."""

import sys


def main() -> None:
    """Load the program and run it; Ctrl-C while it loads ends it as Ctrl-C later does."""
    try:
        from oodcli.cli.app import main as program  # noqa: PLC0415 - inside the guard

        program()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
