"""JSON and CSV, for programs: every digit, nothing left out."""

import codecs
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from oodcli.text import escaped, json_text


def write_json(content: Mapping[str, Any]) -> str:
    """Write one object; a value that cannot be had is null, since NaN is not JSON."""
    utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    return json_text(content, indent=1, plain=not utf8) + "\n"


def write_csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Write a heading and lines of values; text as :func:`oodcli.text.escaped` has it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for line in lines:
        writer.writerow([escaped(value) if isinstance(value, str) else value for value in line])
    return stream.getvalue()
