"""The style and the scripts of the explorer, as a page embeds them."""

import json
from dataclasses import dataclass
from pathlib import Path

from oodcli.records import as_json
from oodcli.reporting.explorer.payload import Payload

_STYLES = ("explorer.css", "images.css")
_WEB = Path(__file__).parent / "web"
_VENDORED = ("d3-7.9.0", "plot-0.6.17")
"""Libraries as published, in the order in which they are needed, and their licences."""
_SCRIPTS = (
    "core.js",
    "overview.js",
    "threshold.js",
    "classes.js",
    "images.js",
    "strip.js",
    "colours.js",
    "map.js",
    "norms.js",
    "main.js",
)
"""Our scripts in their order; panels stand between ``core.js`` and ``main.js``."""

# What Observable Plot writes into each of its figures with the class name "plot".
_STYLE_OF_PLOT = """:where(.plot) {
  --plot-background: white;
  display: block;
  height: auto;
  height: intrinsic;
  max-width: 100%;
}
:where(.plot text),
:where(.plot tspan) {
  white-space: pre;
}"""


@dataclass(frozen=True)
class Assets:
    """An explorer in the parts that a page embeds.

    Parameters
    ----------
    data
        The payload as JSON without any ``<``, ``>`` or ``&``, so that it cannot end its element.
    style
        Style sheet.
    scripts
        Scripts in their order, each one to be run by itself.
    styles_of_scripts
        Style sheets that the scripts add, to be allowed by the security policy.
    """

    data: str
    style: str
    scripts: tuple[str, ...]
    styles_of_scripts: tuple[str, ...]

    @property
    def characters(self) -> int:
        """Number of characters of all parts that a page embeds."""
        return len(self.data) + len(self.style) + sum(map(len, self.scripts))


def assets_of(payload: Payload) -> Assets:
    """Return the parts of a page with an explorer of this data."""
    own = "\n".join((_WEB / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return Assets(
        data=as_script_data(payload),
        style="\n".join((_WEB / name).read_text(encoding="utf-8") for name in _STYLES),
        scripts=(
            *map(_library, _VENDORED),
            f'(() => {{\n"use strict";\n{own}\n}})();\n',
        ),
        styles_of_scripts=(_STYLE_OF_PLOT,),
    )


def _library(name: str) -> str:
    """Return a library with its licence, which every copy of it must have."""
    folder = _WEB / "vendor"
    notice = (folder / f"{name}.LICENSE").read_text(encoding="utf-8")
    script = (folder / f"{name}.min.js").read_text(encoding="utf-8")
    return f"/*\n{notice}*/\n{script}"


def as_script_data(payload: Payload) -> str:
    """Return the payload as JSON that is safe inside a ``<script>`` element, in ASCII."""
    text = json.dumps(as_json(payload), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
