"""Pages of the manual: formatted on a terminal, otherwise as Markdown."""

import io
import re
import sys

from oodcli.cli.console import StyledText
from oodcli.cli.render.formats.terminal import table_width
from oodcli.manual import TOPICS, page

_MAX_WIDTH = 110


def write_page(topic: str) -> str:
    """Return a page of the manual, formatted if stdout is a terminal."""
    return _render_markdown(page(topic)) if sys.stdout.isatty() else page(topic)


def write_contents(commands: list[str]) -> str:
    """Return a list of the manual's pages, with the command that shows each.

    Parameters
    ----------
    commands
        Names of commands; a page with the name of a command needs ``--page``.
    """
    shown = {topic: f"ood help {'--page ' * (topic in commands)}{topic}" for topic in TOPICS}
    width = max(map(len, shown.values()))
    lines = [f"{shown[topic]:{width}}  {about}" for topic, about in TOPICS.items()]
    return "\n".join(lines) + "\n"


def _render_markdown(text: str) -> StyledText:
    """Format Markdown for a terminal; links to pages become commands, pictures are omitted."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.theme import Theme

    text = re.sub(r"^(<!--.*-->|!\[.*\]\(.*\))\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]+)\]\((\w+)\.md\)", r"\1 (`ood help --page \2`)", text)
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=min(table_width(on_terminal=True), _MAX_WIDTH),
        force_terminal=True,
        theme=Theme({"markdown.code": "cyan", "markdown.code_block": "cyan"}),
    )
    console.print(Markdown(text, code_theme="ansi_dark", hyperlinks=False))
    return StyledText("\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n")
