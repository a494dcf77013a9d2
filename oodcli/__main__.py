"""Run the command line as ``python -m oodcli``."""

from oodcli.cli.app import main

if __name__ == "__main__":
    main()
