"""JSON and CSV, for programs: every digit, nothing left out."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any


def write_json(content: Mapping[str, Any]) -> str:
    """Write one object; a value that cannot be had is null, since NaN is not JSON."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Write a heading and lines of values."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return stream.getvalue()
