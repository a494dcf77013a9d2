"""JSON and CSV, for programs: every digit, nothing left out."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_BEYOND_ASCII = re.compile(r"[^\n -~]")


def write_json(content: Mapping[str, Any]) -> str:
    """Write one object; a value that cannot be had is null, since NaN is not JSON."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    return _BEYOND_ASCII.sub(_escaped, text) + "\n"


def _escaped(found: re.Match[str]) -> str:
    """Escape what steers a terminal, hides, or is no character, such as half a pair of UTF-16.

    JSON means the same with the escape; by itself it has only the first 32 characters escaped.
    """
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def write_csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Write a heading and lines of values."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return stream.getvalue()
