"""The records of the explorer as TypeScript interfaces, against which its scripts are checked.

``python -m oodcli.reporting.explorer.typescript`` writes ``web/payload.d.ts``.
"""

import inspect
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from oodcli.reporting.explorer import image_payload, packing, payload

TARGET = Path(__file__).parent / "web" / "payload.d.ts"
_PLAIN = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def interfaces() -> str:
    """Return the records that the page reads as TypeScript."""
    records = [
        each
        for module in (payload, image_payload)
        for each in vars(module).values()
        if inspect.isclass(each) and is_dataclass(each) and each.__module__ == module.__name__
    ]
    head = "// Written by: python -m oodcli.reporting.explorer.typescript\n"
    packed = f"/** {(packing.__doc__ or '').strip()} */\ntype Packed = string;\n"
    return "\n".join([head, packed, *map(_interface, records)])


def _interface(record: type) -> str:
    hints = get_type_hints(record)
    lines = [f"  readonly {each.name}: {_type(hints[each.name])};" for each in fields(record)]
    about = (record.__doc__ or "").partition("\n")[0]
    return "\n".join([f"/** {about} */", f"interface {record.__name__} {{", *lines, "}", ""])


def _type(hint: Any) -> str:  # noqa: ANN401 - a type annotation
    """Return an annotation as a TypeScript type.

    Raises
    ------
    TypeError
        If it has no counterpart.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        written = _PLAIN[hint]
    elif hint is packing.Packed or (inspect.isclass(hint) and is_dataclass(hint)):
        written = hint.__name__
    elif origin is Literal:
        written = " | ".join(f'"{value}"' for value in inner)
    elif origin in (Union, types.UnionType):
        written = " | ".join(map(_type, inner))
    elif origin is tuple and inner[1:] == (...,):
        written = f"ReadonlyArray<{_type(inner[0])}>"
    elif origin is Mapping:
        written = f"Readonly<Record<{_type(inner[0])}, {_type(inner[1])}>>"
    else:
        raise TypeError(f"{hint} has no counterpart in TypeScript")
    return written


if __name__ == "__main__":
    TARGET.write_text(interfaces(), encoding="utf-8")
