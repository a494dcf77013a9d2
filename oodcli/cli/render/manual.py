"""Pages of the manual: drawn on a terminal, as Markdown elsewhere."""

import io
import re
import sys

from oodcli.cli.console import StyledText
from oodcli.cli.render.formats.terminal import window
from oodcli.manual import TOPICS, page

_WIDEST = 110


def write_page(topic: str) -> str:
    """Write a page of the manual, drawn where stdout is a terminal."""
    return _drawn(page(topic)) if sys.stdout.isatty() else page(topic)


def write_contents(commands: list[str]) -> str:
    """List the pages of the manual, with the command that shows each.

    Parameters
    ----------
    commands
        Names of commands; a page of the same name is shown by ``--page``.
    """
    shown = {topic: f"ood help {'--page ' * (topic in commands)}{topic}" for topic in TOPICS}
    width = max(map(len, shown.values()))
    lines = [f"{shown[topic]:{width}}  {about}" for topic, about in TOPICS.items()]
    return "\n".join(lines) + "\n"


def _drawn(text: str) -> StyledText:
    """Draw Markdown for the terminal; links to pages become commands, pictures are skipped."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.theme import Theme

    text = re.sub(r"^(<!--.*-->|!\[.*\]\(.*\))\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]+)\]\((\w+)\.md\)", r"\1 (`ood help --page \2`)", text)
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=min(window(on_terminal=True), _WIDEST),
        force_terminal=True,
        theme=Theme({"markdown.code": "cyan", "markdown.code_block": "cyan"}),
    )
    console.print(Markdown(text, code_theme="ansi_dark", hyperlinks=False))
    return StyledText("\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n")
