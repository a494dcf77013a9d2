"""``python -m oodcli.manual``: write the generated parts of the pages anew."""

from pathlib import Path

from oodcli.manual import TOPICS, page
from oodcli.manual.generate import refreshed

for topic in TOPICS:
    Path(__file__).with_name(f"{topic}.md").write_text(refreshed(page(topic)), encoding="utf-8")
