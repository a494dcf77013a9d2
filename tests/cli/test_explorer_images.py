"""Images, maps and norms of the explorer in a real browser."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from oodcli.cli.options import Format
from oodcli.cli.render.report import explorer_of, render_report
from oodcli.reporting import embedding
from oodcli.reporting.explorer import maps
from oodcli.reporting.explorer.image_payload import ImagePanels
from oodcli.reporting.explorer.images import FoundRun, Notes, strip_of
from oodcli.reporting.sources import ScoredRun, ScoreQuery, Sources
from oodcli.reporting.statistics import threshold_at
from oodcli.store.scores import PREDICTIONS, ScoredSet
from oodcli.store.store import Store
from oodcli.workflows.explore import explore
from oodcli.workflows.report import report
from tests.support.browser import opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "<img src=x onerror=window.hacked=1>"
SETS = {"own": 60, "svhn": 30, "near one": 20}
SHOWN = 80


@dataclass(frozen=True)
class PlainImages:
    """Found images, each of one colour that tells its set and row, with a hostile name."""

    at: int
    entry: ScoredSet
    labels: np.ndarray | None

    @property
    def images(self) -> SimpleNamespace:
        size = self.entry.n
        return type("Images", (), {"__len__": lambda _: size, "labels": self.labels})()

    def name(self, row: int) -> str:
        return f"{HOSTILE}/{row}.png"

    def colour(self, row: int) -> list[int]:
        return [60 * self.at + 40, 3 * row + 20, 200 - 3 * row]

    def pixels(self, rows: np.ndarray) -> list[np.ndarray]:
        colours = [np.array(self.colour(int(row)), np.uint8) for row in rows]
        return [np.broadcast_to(each, (32, 32, 3)) for each in colours]


@dataclass(frozen=True)
class Made:
    """A page, and the scores that it shows."""

    path: Path
    scores: dict[str, np.ndarray]
    means: dict[str, float]


def predicting_truck(run: ScoredRun) -> Callable[[str, ScoredSet], np.ndarray | None]:
    """Return the scores of a run whose network sees nothing but trucks, without those of msp."""

    def read(method: str, entry: ScoredSet) -> np.ndarray | None:
        if method == PREDICTIONS:
            return np.full(entry.n, 3)
        return None if method == "msp" else run.read(method, entry)

    return read


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Write the page of made-up scores, images and features."""
    folder = tmp_path_factory.mktemp("page")
    draw = np.random.default_rng(0)
    labels = draw.integers(4, size=SETS["own"])
    scores = {f"{method}/{name}": draw.normal(-at, 1, n) + weight * np.arange(n)
              for method, weight in (("msp", 0.01), ("energy", -0.02))
              for at, (name, n) in enumerate(SETS.items())}  # fmt: skip
    scores |= {f"@predictions/{name}": draw.integers(4, size=n) for name, n in SETS.items()}
    np.savez(folder / "run.npz", **scores, **{"@labels/own": labels})
    features = {name: draw.normal(2 - at, 1, (n, 5)) for at, (name, n) in enumerate(SETS.items())}
    training = SimpleNamespace(
        features=lambda: iter([draw.normal(0, 1, (40, 5))]),
        images=type("Images", (), {"__len__": lambda _: 40, "labels": np.arange(40) % 4})(),
        name=lambda row: f"train {row}",
        pixels=lambda rows: [np.full((32, 32, 3), row, np.uint8) for row in rows],
    )
    query = ScoreQuery(files=[folder / "run.npz"], id_name="own")
    with Sources.open(None, query) as sources, pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "MAX_POINTS", SHOWN)
        result = report(sources)
        payload = explore(
            sources, convention="neutral", digits=2, average=False,
            method_label=lambda row: row.method, column_label=lambda row: row.dataset,
        )  # fmt: skip
        (run,) = sources.runs
        read = run.read  # of score files, it has no predictions of OOD images
        run = replace(
            run,
            read=lambda method, entry: scores.get(f"{method}/{entry.name}", read(method, entry)),
        )
        entries = (run.scoring.id_set, *run.sets)
        sets = [PlainImages(at, entry, labels if at == 0 else None)
                for at, entry in enumerate(entries)]  # fmt: skip
        place = SimpleNamespace(folder=SimpleNamespace(embeddings=folder / "embeddings"))
        images = SimpleNamespace(
            sets=sets, features=lambda: features, training=lambda: training,
            store=Store(folder / "store"), stored=place,
        )  # fmt: skip
        found = FoundRun(0, run, images)
        twin = FoundRun(0, replace(run, read=predicting_truck(run)), images)
        twice = FoundRun(
            0, run, SimpleNamespace(
                sets=sets, features=lambda: {name: 2 * own for name, own in features.items()}
            )
        )  # fmt: skip
        notes = Notes()
        panels = ImagePanels(
            strips=(strip_of(found, 400_000, notes),),
            map=maps.map_of([found, twin], 400_000, notes),
            norms=(maps.norms_of(found), maps.norms_of(twice)),
        )
    network = replace(
        payload.networks[0], training="cross-entropy", classes=("frog", HOSTILE, "ship", "truck")
    )
    payload = replace(payload, images=panels, networks=(network,), limits=tuple(notes.lines))
    text = render_report(result, Format.HTML, to_file=True, app=explorer_of(payload))
    (folder / "page.html").write_text(text)
    means = {name: np.linalg.norm(own, axis=1).mean() for name, own in features.items()}
    return Made(folder / "page.html", scores, means)


def choose(seen: "Page", method: str, dataset: str) -> None:
    seen.get_by_label("Method", exact=True).select_option(method)
    seen.get_by_label("OOD set", exact=True).select_option(dataset)


def names(seen: "Page", heading: str) -> list[str]:
    """Return the rows of the images under a heading of the strip."""
    found = seen.locator("#strip .image-list").filter(has_text=heading).locator("button")
    titles = found.evaluate_all("all => all.map((each) => each.title)")
    assert all(title.startswith(f"{HOSTILE}/") for title in titles)
    return [title.split("/")[1].removesuffix(".png") for title in titles]


def test_the_strip_has_the_worst_images_and_opens_them(page: Made, chromium: "Browser") -> None:
    with opened(chromium, page.path) as seen:
        for method, dataset in (("msp", "svhn"), ("energy", "near one")):
            choose(seen, method, dataset)
            order = np.argsort(-page.scores[f"{method}/{dataset}"], kind="stable")[:12]
            assert names(seen, "Most ID-like images") == [str(row) for row in order]
            order = np.argsort(page.scores[f"{method}/own"], kind="stable")[:12]
            assert names(seen, "Most OOD-like images") == [str(row) for row in order]
        assert f"12 of {SETS['near one']}" in seen.locator("#strip h3").nth(0).inner_text()
        # Odd images: those that most methods reject, with the rest of them behind a button.
        rejected = sum((page.scores[f"{method}/own"] < threshold_at(page.scores[f"{method}/own"]))
                       for method in ("msp", "energy")).astype(int)  # fmt: skip
        odd = seen.locator("#strip .image-list").nth(2)
        total = np.count_nonzero(rejected)
        assert f"reject {total} of {SETS['own']}" in odd.locator("h3").inner_text()
        assert len(names(seen, "Odd images")) == total
        label = odd.locator("button").first.get_attribute("aria-label")
        assert label
        assert label.count("predicted") == 1
        assert "→" not in label
        thumbs = seen.locator("#strip .image-list").nth(1).locator("button")
        thumbs.nth(1).focus()
        seen.keyboard.press("ArrowLeft")
        seen.keyboard.press("Enter")
        dialog = seen.get_by_role("dialog")
        row = int(order[0])
        assert dialog.get_by_role("heading", level=2).inner_text() == f"{HOSTILE}/{row}.png"
        drawn = dialog.locator(".large-picture canvas").evaluate(
            "async (each) => { await new Promise(requestAnimationFrame);"
            "return [...each.getContext('2d').getImageData(16, 16, 1, 1).data].slice(0, 3) }"
        )
        assert np.abs(np.array(drawn) - [40, 3 * row + 20, 200 - 3 * row]).max() <= 12
        assert dialog.locator(".thumbs li").count() == 3
        rows = dialog.locator("tbody tr").all_inner_texts()
        below = np.mean(page.scores["msp/own"] < page.scores["msp/own"][row])
        cells = dict(zip([line.split("\t")[0] for line in rows], rows, strict=True))
        assert [*cells] == ["energy", "msp"]
        score = f"{page.scores['msp/own'][row]:.4g}"
        assert cells["msp"].split("\t")[1:3] == [score, f"{100 * below:.1f} %"]
        seen.keyboard.press("ArrowRight")
        assert dialog.get_by_role("heading", level=2).inner_text() == f"{HOSTILE}/{order[1]}.png"
        seen.keyboard.press("Escape")
        assert not dialog.is_visible()
        assert thumbs.nth(0).evaluate("each => each === document.activeElement")
        assert seen.evaluate("window.hacked") is None


def listed(seen: "Page") -> int:
    """Return how many images are listed below the map."""
    heading = seen.locator("#map .image-list h3")
    return int(heading.inner_text().split(" ")[0]) if heading.count() else 0


def lasso(seen: "Page", left: float, right: float) -> None:
    """Draw around a part of the width of the first map with the mouse."""
    box = seen.locator(".map-chart").first.bounding_box()
    assert box
    inside = [(left, 0.01), (right, 0.01), (right, 0.99), (left, 0.99)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in inside]
    seen.mouse.move(*places[0])
    seen.mouse.down()
    for place in places[1:]:
        seen.mouse.move(*place, steps=3)
    seen.mouse.up()


def test_images_of_the_map_are_listed_by_lasso_and_by_category(
    page: Made, chromium: "Browser"
) -> None:
    with opened(chromium, page.path) as seen:
        seen.locator("#map").scroll_into_view_if_needed()
        drawn = seen.locator("#map canvas.map-dots").evaluate_all(
            "all => all.map((each) => each.getContext('2d').getImageData(0, 0, each.width, "
            "each.height).data.filter((value, at) => at % 4 === 3 && value > 100).length)"
        )
        assert len(drawn) == 2
        assert all(SHOWN * 5 < pixels < SHOWN * 30 for pixels in drawn)  # marks of 21 each
        lasso(seen, 0.001, 0.999)
        assert listed(seen) == SHOWN
        lasso(seen, 0.001, 0.5)
        half = listed(seen)
        assert 0 < half < SHOWN
        lasso(seen, 0.5, 0.999)
        assert half + listed(seen) == SHOWN
        # The legend filters; what is hidden is not within the lasso.
        key = seen.locator("#map .map-key").filter(has_text="svhn")
        n = int(key.locator(".count").inner_text())
        key.click()
        assert key.get_attribute("aria-pressed") == "false"
        lasso(seen, 0.001, 0.999)
        assert listed(seen) == SHOWN - n
        seen.get_by_role("button", name="Show all").click()
        assert listed(seen) == 0
        seen.get_by_label("Only").select_option(label="svhn (OOD)")
        seen.get_by_role("button", name="List the images shown").click()
        assert listed(seen) == n
        items = seen.locator("#map .thumbs button")
        assert items.count() == n
        items.first.focus()
        assert seen.locator(".map-ring").count() == 2  # on both maps
        # Keys on the map: to the next image, and open it.
        seen.get_by_role("button", name="PCA").click()
        seen.locator(".map-chart").first.focus()
        seen.keyboard.press("ArrowRight")
        tip = seen.locator("#map .map-tip").first
        assert HOSTILE in tip.inner_text()
        assert "svhn (OOD)" in tip.inner_text()
        seen.keyboard.press("Enter")
        assert seen.get_by_role("dialog").locator(".readout").inner_text().count("svhn (OOD)") == 1
        assert seen.get_by_role("button", name="Next").is_visible()  # among those listed
        seen.keyboard.press("Escape")
        seen.locator(".map-chart").first.press("Escape")  # lists none
        seen.locator(".map-chart").first.press("Enter")
        assert seen.get_by_role("dialog").is_visible()
        assert not seen.get_by_role("button", name="Next").is_visible()
        seen.keyboard.press("Escape")
        assert seen.evaluate("window.hacked") is None


def keys_by(seen: "Page", colouring: str) -> dict[str, list[int]]:
    """Colour the maps, and return the numbers of images of the keys, by map if they differ."""
    seen.get_by_label("Colour by").select_option(colouring)
    keys = seen.locator("#map .map-key")
    counts = keys.locator(".count").all_inner_texts()
    names = keys.evaluate_all("all => all.map((each) => each.childNodes[1].textContent.trim())")
    return dict(zip(names, [[int(n) for n in each.split(" | ")] for each in counts], strict=True))


def test_keys_count_the_images_of_each_map(page: Made, chromium: "Browser") -> None:
    with opened(chromium, page.path) as seen:
        by_class = keys_by(seen, "class")
        assert sum(n for (n,) in by_class.values()) == SHOWN
        fills = seen.locator("#map .map-key path").evaluate_all(
            "all => all.map((each) => each.getAttribute('fill'))"
        )
        assert dict(zip(by_class, fills, strict=True))["OOD"] == "var(--cat-none)"
        assert len({*fills}) == len(fills) == 5
        predicted = keys_by(seen, "predicted")
        assert predicted["truck"][1] == SHOWN  # the second network sees nothing else
        assert predicted["ship"][1] == 0
        assert sum(first for first, _ in predicted.values()) == SHOWN
        choose(seen, "energy", "svhn")
        assert "no score" not in keys_by(seen, "percentile")
        choose(seen, "msp", "svhn")  # which the second run does not have
        assert keys_by(seen, "percentile")["no score"] == [0, SHOWN]
        assert "No percentiles for msp" in seen.locator("#map .map-legend").inner_text()


def test_the_dialog_of_a_map_says_what_it_knows(page: Made, chromium: "Browser") -> None:
    with opened(chromium, page.path) as seen:
        choose(seen, "msp", "svhn")
        seen.locator("input[type=range]").press("Home")  # accepts every image
        seen.get_by_label("Only").select_option(label="svhn (OOD)")
        seen.get_by_role("button", name="List the images shown").click()
        listed = seen.locator("#map .thumbs button")
        listed.first.click()
        dialog = seen.get_by_role("dialog")
        kinds = set()
        for _ in range(listed.count()):
            heads = dialog.locator("thead th").all_inner_texts()
            scored = "Score" in heads
            kinds.add(scored)
            assert ("percentiles, in steps of 0.5 %" in dialog.inner_text()) is not scored
            row = dialog.locator("tbody tr").first.all_inner_texts()[0].split("\t")
            assert row[0] == "msp"
            # At the chosen threshold every image is accepted, which a percentile of 0 leaves open.
            assert row[-1] in ({"ID"} if scored or row[1] != "0.0 %" else {"near the threshold"})
            seen.keyboard.press("ArrowRight")
        assert kinds == {True, False}


def test_norms_of_features_are_those_of_each_set(page: Made, chromium: "Browser") -> None:
    with opened(chromium, page.path) as seen:
        rows = [row.split("\t") for row in seen.locator("#norms tbody tr").all_inner_texts()]
        said = seen.locator("#norms .meaning").inner_text()
        trained = seen.locator("#norms figcaption").all_inner_texts()
    names = [name if at else f"{name} (ID)" for at, name in enumerate(SETS)]
    assert [row[0] for row in rows] == ["run, trained with cross-entropy", *names] * 2
    means = page.means
    for row, name in zip([*rows[1:4], *rows[5:]], [*SETS] * 2, strict=True):
        factor = 1 if row in rows[:4] else 2  # the second run has features of twice the norm
        assert row[1] == f"{factor * means[name]:.2f}"
        assert row[2] == ("" if name == "own" else f"×{means['own'] / means[name]:.2f}")
    assert "of run is 2.00 times that of run" in said
    assert trained == ["run trained with cross-entropy"] * 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_in_its_width(
    page: Made, chromium: "Browser", scheme: str
) -> None:
    phone = {"viewport": {"width": 360, "height": 700}, "has_touch": True, "is_mobile": True}
    with opened(chromium, page.path, color_scheme=scheme, **phone) as seen:
        root = "document.documentElement"
        assert seen.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
        # A finger scrolls over the map, unless the lasso is on.
        lassoes = seen.get_by_role("button", name="Lasso")
        assert lassoes.get_attribute("aria-pressed") == "false"
        chart = seen.locator(".map-chart").first
        touch = "each => getComputedStyle(each).touchAction"
        assert chart.evaluate(touch) == "auto"
        lassoes.tap()
        assert chart.evaluate(touch) == "none"
        table = seen.locator("#norms .scroll")
        assert table.evaluate("each => each.scrollWidth <= each.clientWidth")
        seen.locator("#strip button").first.tap()
        dialog = seen.get_by_role("dialog")
        box = dialog.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


def test_without_scripts_and_in_print_nothing_is_broken(page: Made, chromium: "Browser") -> None:
    with opened(chromium, page.path, java_script_enabled=False) as seen:
        assert not seen.locator("#explorer").is_visible()
        assert seen.locator("table").first.is_visible()
    with opened(chromium, page.path) as seen:
        seen.emulate_media(media="print")
        assert seen.locator("#strip canvas").first.is_visible()
        dots = seen.locator("canvas.map-dots").first
        assert dots.is_visible()
        assert dots.evaluate("each => each.width === 3 * each.clientWidth")  # sharp on paper
        assert not seen.get_by_role("button", name="List the images shown").is_visible()
