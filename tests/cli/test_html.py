"""Pages: nothing from elsewhere, nothing taken for markup, and what a browser makes of them."""

import base64
import hashlib
import html
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from oodcli.cli.options import Format
from oodcli.cli.render.formats import EmbeddedPicture
from oodcli.cli.render.formats.html import write_html
from oodcli.cli.render.formats.table import Cell, Column, Table
from oodcli.cli.render.report import render_report
from oodcli.cli.render.report_table import TableLayout
from oodcli.metrics import Detection
from oodcli.reporting.results import Report, ResultRow, RunSummary, with_averages

HOSTILE = (
    "\"><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def report(*, name: str = "svhn") -> Report:
    """Make a report of three methods on two sets."""
    values = {"msp": (0.3, 0.9), "energy": (0.2, 0.95), "featurenorm": (0.1, 0.97)}
    rows = [
        ResultRow(
            detection=Detection(fpr, auroc, 0.75, 0.5, n_id=1000, n_ood=2500),
            run="r",
            method=method,
            params={},
            dataset=dataset,
            group="ood",
            id_accuracy=0.95,
            convention="neutral",
        )
        for dataset in (name, "isun")
        for method, (fpr, auroc) in values.items()
    ]
    runs = [RunSummary("r", "resnet18", "cifar10", 1000, 0.95, 0)]
    return Report("neutral", "what it means", None, runs, with_averages(rows), (HOSTILE,))


def page(*, name: str = "svhn", layout: TableLayout | None = None) -> str:
    """Write a report as a page."""
    return render_report(report(name=name), Format.HTML, to_file=True, layout=layout)


class Reader(HTMLParser):
    """Collects the elements of a page, and complains of those that do not close."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    """Parse a page."""
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = render_report(
        report(),
        Format.HTML,
        to_file=True,
        pictures=[EmbeddedPicture("a picture", "a point", PIXEL)],
    )
    for tag, attributes in read(text).elements:
        assert tag not in ("link", "iframe", "object", "base", "form")
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_the_browser_may_run_this_script_alone() -> None:
    text = page()
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_what_comes_from_outside_is_text() -> None:
    reader = read(page(name=HOSTILE))
    assert reader.text.count(HOSTILE) == 3 + 1
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("script") == 1
    assert tags.count("img") == 0
    named = read(
        write_html([], heading=HOSTILE, pictures=[EmbeddedPicture(HOSTILE, HOSTILE, PIXEL)])
    )
    assert dict(named.elements)["img"]["alt"] == HOSTILE


def test_several_pictures_are_in_a_section_that_is_closed_at_first() -> None:
    one = EmbeddedPicture("a picture", "a point", PIXEL)
    svg = EmbeddedPicture("another", "a line", b"<svg/>", "svg")
    elements = read(write_html([], pictures=[one, svg])).elements
    (section,) = [attributes for tag, attributes in elements if tag == "details"]
    assert section == {"class": "pictures"}
    images = [attributes for tag, attributes in elements if tag == "img"]
    assert [each["src"].split(",")[0] for each in images] == [
        "data:image/png;base64", "data:image/svg+xml;base64",
    ]  # fmt: skip
    assert base64.b64decode(images[1]["src"].split(",")[1]) == b"<svg/>"
    assert {(each["loading"], each["decoding"]) for each in images} == {("lazy", "async")}
    assert "details" not in [tag for tag, _ in read(write_html([], pictures=[one])).elements]


def test_headings_are_buttons_that_say_how_a_column_is_sorted() -> None:
    reader = read(page())
    headings = [a for tag, a in reader.elements if tag == "th" and a.get("scope") == "col"]
    buttons = [a for tag, a in reader.elements if tag == "button"]
    sortable = [a for a in headings if "aria-sort" in a]
    assert {a["aria-sort"] for a in sortable} == {"none"}
    assert len(buttons) == len(sortable)
    regions = [a for tag, a in reader.elements if a.get("role") == "region"]
    assert all(a["tabindex"] == "0" and a["aria-labelledby"] for a in regions)


def test_columns_that_share_a_heading_are_spanned_by_it() -> None:
    reader = read(page(layout=TableLayout(transpose=True)))
    spans = [a["colspan"] for tag, a in reader.elements if a.get("scope") == "colgroup"]
    assert spans == ["2", "2", "2"]


def test_cells_keep_every_digit_to_sort_by() -> None:
    table = Table(("t",), (Column("a", "A", right=True),), ({"a": Cell("33.33", value=1 / 3)},))
    assert 'data-value="0.3333333333333333">33.33<' in write_html([table])


def browser() -> str:
    """Return the browser of this machine, or skip."""
    for name in BROWSERS:
        if shutil.which(name):
            return name
    pytest.skip(f"needs a browser: {' or '.join(BROWSERS)}")


def browse(where: Path, *options: str) -> str:
    """Open a page without a screen and return what became of it."""
    done = subprocess.run(
        [
            browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={where.parent / 'profile'}", "--virtual-time-budget=2000",
            "--enable-logging=stderr", *options, where.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True, cwd=where.parent,
    )  # fmt: skip
    # What the policy of the page refuses is said on the console.
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr
    return done.stdout


def sorted_by(tmp_path: Path, column: str, presses: int) -> tuple[list[str], str]:
    """Press a heading, and return the methods in the order then seen and the live text."""
    text = page(layout=TableLayout(transpose=True))
    press = (
        f"const b = document.querySelector('button[data-name=\"{column}\"]');"
        f"for (let i = 0; i < {presses}; i++) b.click();"
    )
    # This one script more is let through; otherwise the page is as it is written.
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text)
    (tmp_path / "page.html").write_text(text.replace("</body>", f"<script>{press}</script></body>"))
    dom = browse(tmp_path / "page.html", "--dump-dom")
    table = dom[dom.index("<tbody>") : dom.index("</tbody>")]
    said = re.search(r'aria-live="polite">(.*?)<', dom)
    assert said
    order = re.findall(r'<th scope="row"[^>]*>(.*?)</th>', table)
    return order, html.unescape(said[1])


@pytest.mark.parametrize(
    ("presses", "order", "said"),
    [
        (1, ["featurenorm", "energy", "msp"], "sorted by svhn FPR95 ↓, ascending"),
        (2, ["msp", "energy", "featurenorm"], "sorted by svhn FPR95 ↓, descending"),
        (3, ["msp", "energy", "featurenorm"], "original order"),
    ],
)
def test_a_browser_sorts(presses: int, order: list[str], said: str, tmp_path: Path) -> None:
    assert sorted_by(tmp_path, "svhn FPR95 ↓", presses) == (order, said)


def test_a_browser_shows_the_best_first_where_more_is_better(tmp_path: Path) -> None:
    order, said = sorted_by(tmp_path, "svhn AUROC ↑", 1)
    assert order == ["featurenorm", "energy", "msp"]
    assert said == "sorted by svhn AUROC ↑, descending"


def test_a_browser_sorts_names(tmp_path: Path) -> None:
    assert sorted_by(tmp_path, "Method", 1)[0] == ["energy", "featurenorm", "msp"]


def test_a_browser_runs_nothing_that_came_from_outside(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(name=HOSTILE))
    dom = browse(tmp_path / "page.html", "--dump-dom")
    assert "<title>OOD detection: cifar10</title>" in dom
    assert HOSTILE in html.unescape(dom)


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (1280, True), (500, False), (500, True)]
)
def test_a_browser_draws_it_light_and_dark_and_no_wider_than_the_screen(
    width: int, dark: bool, tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "page.html").write_text(page())
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(
        tmp_path / "page.html", f"--screenshot={tmp_path / 'seen.png'}",
        f"--window-size={width},800", *scheme,
    )  # fmt: skip
    seen = Image.open(io.BytesIO((tmp_path / "seen.png").read_bytes())).convert("L")
    pixels = np.asarray(seen)
    assert seen.width == width
    ground = int(np.median(pixels))
    assert ground < 60 if dark else ground > 220
    # The page scrolls inside its table, so that its margins stay empty on a narrow screen.
    assert np.ptp(pixels[:, -6:]) < 12
    # Text and bars stand out from the ground.
    assert np.mean(np.abs(pixels.astype(int) - ground) > 60) > 0.01
