"""JSON and CSV, for programs: with all digits and all columns."""

import codecs
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from oodcli.text import escaped, json_text


def write_json(content: Mapping[str, Any]) -> str:
    """Render one JSON object; undefined values must be None, since NaN is not valid JSON."""
    utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    return json_text(content, indent=1, plain=not utf8) + "\n"


def write_csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Render a header and lines of values; text is escaped by :func:`oodcli.text.escaped`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for line in lines:
        writer.writerow([escaped(value) if isinstance(value, str) else value for value in line])
    return stream.getvalue()
