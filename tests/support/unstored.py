"""A command of ``ood`` that stores no pixels, and counts the images that each process decodes."""

import os
import sys
from pathlib import Path

from oodcli.cli.app import main
from oodcli.data.decoding import files, prepare
from oodcli.training import streaming

COUNTS = "OOD_TEST_COUNTS"


def count_decodes(folder: Path) -> None:
    """Write the path of each decoded file into a file of this process."""
    decode_file = files.decode

    def counted(path, *args, **kwargs):
        with (folder / str(os.getpid())).open("a") as out:
            out.write(f"{path}\n")
        return decode_file(path, *args, **kwargs)

    files.decode = counted


if __name__ == "__main__":
    count_decodes(Path(os.environ[COUNTS]))
    prepare.MAX_PIXELS_BYTES = 0
    streaming.MAX_BYTES_IN_MEMORY = 100
    sys.exit(main())
