"""The explorer of an HTML report in a real browser."""

import csv
import io
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from oodcli.cli.app import main
from oodcli.cli.render.formats import EmbeddedPicture
from oodcli.cli.render.formats.html import write_html
from oodcli.cli.render.report import explorer_of
from oodcli.reporting.sources import ScoreQuery, Sources
from oodcli.store.scores import PREDICTIONS, ScoredSet
from oodcli.workflows.explore import explore
from tests.support.browser import opened

if TYPE_CHECKING:
    from playwright.sync_api import Page

SETS = {"cifar100": "near", "tiny-imagenet": "near", "svhn-lossless": "far", "textures": "far"}
SHIFTED = "cifar10-c-sample"
METHODS = {"msp": 1.0, "energy": 1.6, "mds": 0.7}
CLASSES = 10


def scores(folder: Path) -> Path:
    """Write scores of three methods on the sets of a benchmark, with labels and predictions."""
    draw = np.random.default_rng(0)
    labels = draw.integers(CLASSES, size=400)
    wrong = draw.random(400) < 0.1
    arrays = {
        "@labels/cifar10": labels,
        "@predictions/cifar10": np.where(wrong, (labels + 1) % CLASSES, labels),
    }
    for method, distance in METHODS.items():
        arrays[f"{method}/cifar10"] = draw.normal(0, 1, 400) - wrong
        arrays[f"{method}/{SHIFTED}"] = draw.normal(-0.3, 1, 200)
        for at, name in enumerate(SETS):
            arrays[f"{method}/{name}"] = draw.normal(-distance * (1 + 0.3 * at), 1, 300)
    np.savez(folder / "scores.npz", **arrays)
    return folder / "scores.npz"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of a report of these scores, and the same values as CSV."""
    folder = tmp_path_factory.mktemp("explorer")
    source = ["report", "--scores", str(scores(folder)), "--convention", "neutral", "--no-pictures"]
    for how in ("html", "csv"):
        with pytest.raises(SystemExit) as end:
            main([*source, "--format", how, "--output", str(folder / f"page.{how}")])
        assert not end.value.code
    return folder / "page.html"


def rows(page: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """Return the rows of the same report as CSV, by method, data set and group."""
    read = csv.DictReader(io.StringIO(page.with_suffix(".csv").read_text()))
    return {(row["method"], row["dataset"], row["group"]): row for row in read}


def arrays(page: Path) -> dict[str, np.ndarray]:
    with np.load(page.parent / "scores.npz") as found:
        return dict(found)


def written(fraction: str | float) -> str:
    return f"{100 * float(fraction):.2f}"


def facts(seen: "Page") -> dict[str, str]:
    """Return what the page says of the threshold."""
    names = seen.locator("#readout dt").all_inner_texts()
    return dict(zip(names, seen.locator("#readout dd").all_inner_texts(), strict=True))


def heat(seen: "Page") -> dict[str, list[str]]:
    lines = [line.split("\t") for line in seen.locator("#overview tbody tr").all_inner_texts()]
    return {line[0]: line[1:] for line in lines}


@pytest.mark.parametrize("convention", ["neutral", "openood"])
def test_the_page_has_the_numbers_of_the_table(convention, tmp_path, page, chromium):
    source = ["report", "--scores", page.parent / "scores.npz", "--convention", convention]
    argv = [*source, "--format", "csv", "--output", tmp_path / "page.csv"]
    with pytest.raises(SystemExit) as end:
        main([str(each) for each in argv])
    assert not end.value.code
    table = rows(tmp_path / "page.html")
    data = arrays(page)
    with opened(chromium, page) as seen:
        seen.get_by_label("Convention", exact=True).select_option(convention)
        for spectrum, metric in itertools.product(
            ("full", "plain"), ("auroc", "fpr95", "aupr_in", "aupr_out")
        ):
            seen.get_by_label("ID images", exact=True).select_option(spectrum)
            seen.get_by_label("Metric", exact=True).select_option(metric)
            found = heat(seen)
            for method in METHODS:
                own = [
                    row[metric]
                    for (name, _, group), row in table.items()
                    if name == method and group.startswith("fs-") is (spectrum == "full")
                ]
                assert found[method] == [written(value) for value in own]
        # FPR95 of the table is what the page says at the threshold where it is measured.
        for name, group in SETS.items():
            seen.get_by_label("OOD set", exact=True).select_option(name)
            seen.get_by_role("button", name=f"where {convention} measures FPR95").click()
            now = facts(seen)
            (rate,) = [value for name, value in now.items() if name.endswith("(FPR)")]
            method = seen.get_by_label("Method", exact=True).input_value()
            assert rate.startswith(f"{written(table[method, name, group]['fpr95'])} %")
            threshold = float(now["Accepted if the score is at least"])
            assert (
                f"({np.sum(data[f'{method}/{name}'] >= threshold - 1e-4)} of 300)"
                in (now["OOD accepted (FPR)" if convention == "neutral" else "OOD accepted"])
            )


def test_percentages_are_rounded_as_in_the_tables(page, chromium):
    fractions = [0.12125, 0.00125, 0.99995, 1.0, 0.0, 1 / 3, 0.28375, 0.003125, 0.015625]
    text = page.read_text().replace(
        "try {\n  start();", "window.percent = percent;\ntry {\n  start();"
    )
    text = re.sub(r"script-src [^;]*", "script-src 'unsafe-inline'", text)
    changed = page.with_name("changed.html")
    changed.write_text(text)
    with opened(chromium, changed) as seen:
        for digits in (0, 2, 3):
            found = seen.evaluate(
                "([all, d]) => all.map((x) => percent(x, d))", [fractions, digits]
            )
            assert found == [f"{100 * each:.{digits}f}" for each in fractions]


def test_a_cell_is_chosen_by_a_click_and_by_keys(page, chromium):
    with opened(chromium, page) as seen:
        # The best method, on the set where it separates worst.
        assert seen.locator("#threshold-title").inner_text() == "energy on cifar100"
        cell = seen.locator("#overview tbody tr").filter(has_text="mds").locator("td").nth(4)
        cell.click()
        assert seen.locator("#threshold-title").inner_text() == "mds on textures"
        assert cell.get_attribute("aria-selected") == "true"
        assert seen.get_by_label("Method", exact=True).input_value() == "mds"
        cell.focus()
        for key in ("ArrowUp", "ArrowLeft", "Enter"):
            seen.keyboard.press(key)
        assert seen.locator("#threshold-title").inner_text() == "msp on svhn-lossless"
        seen.keyboard.press("Home")
        seen.keyboard.press("Space")
        assert seen.locator("#threshold-title").inner_text() == "msp on cifar100"
        assert seen.locator("[role=grid] [tabindex='0']").count() == 1
        said = seen.locator("#explorer [aria-live]").inner_text()
        assert said.startswith("msp on cifar100: AUROC ")
        chosen = seen.locator("[aria-selected=true]")
        assert chosen.inner_text() == written(rows(page)["msp", "cifar100", "near"]["auroc"])


def test_the_threshold_is_dragged_and_moved_by_keys(page, chromium):
    data = arrays(page)
    correct = data["@labels/cifar10"] == data["@predictions/cifar10"]

    def check(seen: "Page") -> float:
        now = facts(seen)
        least = float(now["Accepted if the score is at least"]) - 1e-4
        ids, ood = data["energy/cifar10"], data["energy/cifar100"]
        kept = np.sum(ids >= least)
        assert now["ID accepted (TPR)"] == f"{kept / 4:.2f} % ({kept} of 400)"
        assert now["False alarms: ID rejected"] == f"{(400 - kept) / 4:.2f} % ({400 - kept} of 400)"
        assert now["OOD accepted (FPR)"].endswith(f"({np.sum(ood >= least)} of 300)")
        right = np.sum(correct & (ids >= least))
        assert now["Accuracy on accepted ID images"].endswith(f"({right} of {kept})")
        # Classes: what is rejected, summed over all of them.
        rejected = seen.locator("#id-classes tbody td:nth-child(3)").all_inner_texts()
        assert sum(map(int, rejected)) == 400 - kept
        slider = seen.get_by_role("slider")
        assert f"{kept / 4:.2f} % of the ID images" in (
            slider.get_attribute("aria-valuetext") or ""
        )
        return least

    with opened(chromium, page) as seen:
        first = check(seen)
        seen.locator("#histogram").evaluate("(each) => each.scrollIntoView({ block: 'center' })")
        box = seen.locator("#histogram svg").bounding_box()
        assert box
        seen.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2)
        seen.mouse.down()
        left = check(seen)
        seen.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2, steps=4)
        right = check(seen)
        seen.mouse.up()
        seen.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] / 2)
        assert check(seen) == right
        assert left < first < right
        seen.get_by_role("slider").focus()
        seen.keyboard.press("ArrowRight")
        assert check(seen) > right
        seen.keyboard.press("End")
        assert facts(seen)["Accepted if the score is at least"] == "above every score"
        assert facts(seen)["Accuracy on accepted ID images"] == "no image accepted"
        seen.get_by_role("button", name="1 % false alarms", exact=True).click()
        assert facts(seen)["False alarms: ID rejected"] == "1.00 % (4 of 400)"
        assert len(seen.locator("#roc circle, #pr circle").all()) == 2


def test_presets_are_the_optimum_and_stay_chosen(page, chromium):
    """The fewest errors are counted, and a preset holds for every method, set and convention."""
    data = arrays(page)

    def counts(method: str, ood: str) -> tuple[np.ndarray, np.ndarray]:
        ids, others = data[f"{method}/cifar10"], data[f"{method}/{ood}"]
        at = np.append(np.unique(np.concatenate([ids, others])), np.inf)
        return (ids < at[:, None]).sum(1), (others >= at[:, None]).sum(1)

    def read(seen: "Page") -> tuple[int, int, int]:
        now = {name.partition(" (")[0]: value for name, value in facts(seen).items()}
        names = (
            "False alarms: ID rejected", "OOD accepted", "Errors: ID rejected and OOD accepted",
        )  # fmt: skip
        rejected, taken, errors = (
            int(re.search(r"\(([\d,]+) of", now[each])[1].replace(",", "")) for each in names
        )
        return rejected, taken, errors

    with opened(chromium, page) as seen:
        pressed = seen.locator(".presets [aria-pressed=true]")
        assert pressed.all_inner_texts() == ["5 % false alarms"]
        method, ood = (seen.get_by_label(each, exact=True) for each in ("Method", "OOD set"))
        for name, best in (
            ("fewest errors", lambda r, a: (r + a).min()),
            ("best TPR \N{MINUS SIGN} FPR", lambda r, a: (r / 400 + a / 300).min()),
        ):
            seen.get_by_role("button", name=name, exact=True).click()
            for own, other in (("energy", "textures"), ("msp", "textures"), ("msp", "cifar100")):
                method.select_option(own)
                ood.select_option(other)
                rejected, taken, errors = read(seen)
                assert rejected + taken == errors
                expected = best(*counts(own, other))
                at_best = errors if name == "fewest errors" else rejected / 400 + taken / 300
                assert at_best == pytest.approx(expected)
                assert pressed.all_inner_texts() == [name]
        seen.get_by_role("button", name="1 % false alarms", exact=True).click()
        for own in METHODS:
            method.select_option(own)
            assert read(seen)[0] == 4
        # What was set by hand keeps its share of ID images.
        seen.get_by_role("slider").press("PageUp")
        assert pressed.count() == 0
        moved = read(seen)[0]
        method.select_option("msp")
        assert read(seen)[0] == moved
        seen.locator("#overview tbody tr").filter(has_text="energy").locator("td").nth(1).click()
        assert read(seen)[0] == moved
        seen.get_by_role("slider").press("End")
        method.select_option("msp")
        assert read(seen)[0] == 400


def test_methods_are_sorted_and_filtered_and_groups_are_shown(page, chromium):
    with opened(chromium, page) as seen:
        assert list(heat(seen)) == ["energy", "msp", "mds"]
        heading = seen.locator("#overview thead").get_by_role("button", name="svhn-lossless")
        heading.click()
        heading.click()
        assert list(heat(seen)) == ["mds", "msp", "energy"]
        assert (
            seen.locator("#overview th[aria-sort=ascending]")
            .inner_text()
            .startswith("svhn-lossless")
        )
        seen.get_by_label("Show methods with").fill("M s")
        assert list(heat(seen)) == ["mds", "msp"]
        seen.get_by_label("Show methods with").fill("")
        seen.get_by_role("button", name="near", exact=True).click()
        # The chosen set was of the group that is hidden now: the hardest one of the others follows.
        assert seen.get_by_label("OOD set", exact=True).input_value() == "svhn-lossless"
        columns = seen.locator("#overview thead th button").all_inner_texts()
        assert columns == ["svhn-lossless", "textures", "far average"]
        assert seen.locator("#threshold tbody tr").count() == 2
        # One group is always shown.
        far = seen.get_by_role("button", name="far", exact=True)
        assert far.get_attribute("aria-disabled") == "true"
        far.dispatch_event("click")
        assert seen.locator("#overview thead th button").count() == 3
        seen.get_by_role("button", name="near", exact=True).click()
        assert far.get_attribute("aria-disabled") == "false"
        assert seen.locator("#overview thead th button").count() == 7


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_horizontal_scrolling(scheme, page, chromium):
    viewport = {"width": 360, "height": 740}
    with opened(chromium, page, viewport=viewport, color_scheme=scheme, has_touch=True) as seen:
        assert seen.evaluate("document.documentElement.scrollWidth") == 360
        drawn = seen.locator("#histogram svg").bounding_box()
        assert drawn
        assert 250 < drawn["width"] <= 360
        ground = seen.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", ground)[0])
        assert red > 220 if scheme == "light" else red < 60
        # Fingers need more room than a mouse.
        for each in seen.locator("#explorer button:visible, #explorer select:visible").all():
            box = each.bounding_box()
            assert box
            assert min(box["width"], box["height"]) >= 24


def test_it_is_printed_without_controls(page, chromium):
    with opened(chromium, page, color_scheme="dark") as seen:
        seen.emulate_media(media="print")
        # Paper is white, whatever the colours of the screen.
        for each in ("body", "#overview th", "#histogram svg"):
            ink = seen.locator(each).first.evaluate("(each) => getComputedStyle(each).color")
            assert max(map(int, re.findall(r"\d+", ink))) < 60
        assert seen.locator("#overview tbody tr").first.is_visible()
        assert seen.locator("#histogram svg").is_visible()
        assert not seen.get_by_label("Metric", exact=True).is_visible()
        assert not seen.get_by_role("slider").is_visible()
        # Buttons are not painted in headings that are repeated on the next page.
        shown = "(all) => [...new Set(all.map((each) => getComputedStyle(each).display))]"
        assert seen.locator("thead button").evaluate_all(shown) == ["contents"]
        assert seen.pdf().startswith(b"%PDF")


def test_without_scripts_the_tables_are_there_and_nothing_else(page, chromium):
    with opened(chromium, page, java_script_enabled=False) as seen:
        assert not seen.locator("#explorer").is_visible()
        assert seen.locator("main > section table").first.is_visible()
        text = page.read_text()
        # It says what is missing, and no heading looks as if it sorted.
        assert "needs JavaScript" in seen.locator("noscript").inner_text()
        mark = "(each) => getComputedStyle(each, '::after').content"
        button = seen.locator("main > section thead button").first
        assert button.evaluate(mark) == "none"
    before, _, after = text.partition('<div id="explorer" hidden></div>\n')
    assert after.partition("\n")[2].startswith('<section>\n<div class="about"')
    assert "Method</button>" in after.partition("</main>")[0]
    assert "<h1>OOD detection: openood-cifar10</h1>\n<noscript>" in before


def test_an_explorer_that_fails_leaves_the_tables(page, chromium):
    broken = page.with_name("broken.html")
    broken.write_text(page.read_text().replace('"results":[{', '"results":[],"others":[{'))
    with opened(chromium, broken, errors=["the data of the page is incomplete"]) as seen:
        assert not seen.locator("#explorer").is_visible()
        assert seen.locator("main > section table").first.is_visible()


def test_a_screen_reader_has_names_for_everything(page, chromium):
    with opened(chromium, page) as seen:
        for role in ("slider", "combobox", "searchbox", "grid", "button"):
            found = seen.locator("#explorer").get_by_role(role)
            assert found.count()
            assert (
                found.count()
                == seen.locator("#explorer").get_by_role(role, name=re.compile(r"\w")).count()
            )
        assert seen.locator("#explorer svg[aria-label]").count() == 3
        headings = seen.locator("#explorer").get_by_role("heading", level=2).all_inner_texts()
        assert headings == ["Overview", "energy on cifar100", "Classes"]
        for section in seen.locator("#explorer section").all():
            assert section.get_attribute("aria-labelledby")


def test_a_mean_of_runs_and_each_of_them_are_shown(tmp_path, chromium, ood):
    draw = np.random.default_rng(1)
    for seed in (0, 1):
        arrays = {f"msp/{name}": draw.normal(name == "cifar10", 1, 50) for name in ("cifar10", "x")}
        np.savez(tmp_path / f"s{seed}.npz", **arrays)
    files = ["--scores", tmp_path / "s0.npz", "--scores", tmp_path / "s1.npz", "--id", "cifar10"]
    html = [*files, "--format", "html", "--no-pictures", "--output", tmp_path / "page.html"]
    assert ood("report", *html)[0] == 0
    found = {}
    for name in ("s0", "s1"):
        alone = ["--scores", tmp_path / f"{name}.npz", "--id", "cifar10"]
        found[name] = json.loads(ood("report", *alone, "--format", "json")[1])["rows"][0]["auroc"]
    with opened(chromium, tmp_path / "page.html") as seen:
        mean = sum(found.values()) / 2
        # One set has no averages.
        assert heat(seen)["msp"] == [written(mean)]
        # What has no mean is of the first run.
        assert seen.locator("#threshold-title").inner_text() == "msp on x, run s0"
        assert f"{written(found['s0'])} %" in seen.locator("#threshold .metrics").inner_text()
        seen.get_by_label("Run", exact=True).select_option(label="s1")
        assert heat(seen)["msp"] == [written(found["s1"])]
        assert f"{written(found['s1'])} %" in seen.locator("#threshold .metrics").inner_text()


def test_runs_of_one_name_are_told_apart(tmp_path):
    for at in range(2):
        (tmp_path / str(at)).mkdir()
        arrays = {"msp/cifar10": np.arange(5.0) + at, "msp/x": np.arange(4.0)}
        np.savez(tmp_path / str(at) / "same.npz", **arrays)
    query = ScoreQuery(
        files=[tmp_path / str(at) / "same.npz" for at in range(2)], id_name="cifar10"
    )
    with Sources.open(None, query) as sources:
        found = explore(
            sources,
            convention="neutral",
            digits=2,
            average=False,
            method_label=lambda row: row.method,
            column_label=lambda row: row.dataset,
        )
    assert [each.networks for each in found.results] == [(0, 1), (0,), (1,)]
    values = [each.auroc[0][0] for each in found.results]
    assert values[1] < values[2]
    assert values[0] == pytest.approx((values[1] + values[2]) / 2)


def test_it_is_made_without_torch(page, tmp_path):
    code = (
        "import sys\nfrom oodcli.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print([m for m in ('torch', 'sklearn', 'matplotlib') if m in sys.modules])\n"
    )
    argv = ["report", "--scores", page.parent / "scores.npz", "--no-pictures", "--format", "html"]
    argv += ["--output", tmp_path / "page.html"]
    program = [sys.executable, "-c", code, *argv]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    assert (tmp_path / "page.html").read_text().count("definePanel(") > 1


def test_many_methods_and_classes_are_shown_in_part_and_printed_whole(tmp_path, chromium):
    """Seventeen methods, and thirty classes with one ID image each."""
    draw = np.random.default_rng(2)
    taken = np.concatenate([np.repeat(np.arange(10), 3), np.arange(30), np.zeros(40, np.int64)])
    arrays = {"@labels/id": np.arange(30), "@predictions/id": np.arange(30)}
    for at in range(17):
        arrays[f"m{at}/id"] = draw.normal(at / 5, 1, 30)
        arrays[f"m{at}/x"] = draw.normal(0, 1, 100)
    np.savez(tmp_path / "s.npz", **arrays)
    with Sources.open(None, ScoreQuery(files=(tmp_path / "s.npz",), id_name="id")) as sources:
        (run,) = sources.runs

        def read(method: str, entry: ScoredSet) -> np.ndarray | None:
            return taken if (method, entry.name) == (PREDICTIONS, "x") else run.read(method, entry)

        payload = explore(
            replace(sources, runs=(replace(run, read=read),)),
            convention="neutral",
            digits=2,
            average=False,
            method_label=lambda row: row.method,
            column_label=lambda row: row.dataset,
        )
    (tmp_path / "page.html").write_text(write_html([], app=explorer_of(payload)))
    with opened(chromium, tmp_path / "page.html") as seen:
        assert len(heat(seen)) == 15
        # The best is darkest, and the worst quarter is lightest.
        shades = [
            int(re.search(r"heat-(\d)", each.get_attribute("class"))[1])
            for each in seen.locator("#overview tbody td").all()
        ]
        assert shades[0] == 9
        assert shades[12:] == [0, 0, 0]
        assert shades == sorted(shades, reverse=True)
        seen.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert len(heat(seen)) == 17
        seen.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert len(heat(seen)) == 15
        seen.get_by_label("Show methods with").fill("zzz")
        assert (
            seen.locator("#overview [role=status]")
            .inner_text()
            .startswith('No method has "zzz" in its name')
        )
        assert not seen.locator("#overview table").is_visible()
        seen.get_by_label("Show methods with").fill("")
        # One image per class says nothing of its share.
        assert "1 image per class" in seen.locator("#id-classes").inner_text()
        assert seen.locator("#id-classes thead").inner_text().split() == [
            "Class", "Images", "Rejected",
        ]  # fmt: skip
        # What is not among the 25 most frequent classes is in the last row, however few are shown.
        lines = [
            each.split("\t") for each in seen.locator("#ood-classes tbody tr").all_inner_texts()
        ]
        assert len(lines) == 13
        counts = np.sort(np.bincount(taken, minlength=30))[::-1]
        others = counts[25:].sum()
        assert lines[-1][:3] == ["other classes", f"{others}", f"{others:.2f} %"]
        accepted = [int(each[3]) for each in lines[:-1]]
        assert accepted == sorted(accepted, reverse=True)
        seen.get_by_role("button", name="Show all 25 classes and others").click()
        assert seen.locator("#ood-classes tbody tr").count() == 26
        seen.get_by_role("slider").press("End")
        rejected = seen.locator("#id-classes tbody td:nth-child(3)").all_inner_texts()
        assert rejected == ["1"] * 30
        assert (
            seen.locator("#classes-note").inner_text() == "No image is accepted at the threshold."
        )


OWN = "document.title='owned'"
HOSTILE = f'"></script><script>{OWN}</script><img src=x onerror="{OWN}">'


def test_names_run_nothing(page, tmp_path, chromium):
    """Names of sets, classes, runs and methods are shown as they are, and are no markup."""

    def hostile(text: str) -> str:
        return f"{text}{HOSTILE}"

    with Sources.open(None, ScoreQuery(files=(page.parent / "scores.npz",))) as sources:
        plain = explore(
            sources,
            convention="neutral",
            digits=2,
            average=False,
            method_label=lambda row: hostile(row.method),
            column_label=lambda row: hostile(row.dataset),
        )
    (result,), (network,) = plain.results, plain.networks
    evaluation = network.evaluations[0]
    sets = tuple(replace(each, name=hostile(each.name)) for each in evaluation.sets)
    columns = tuple(
        replace(each, dataset=hostile(each.dataset) if each.dataset else "")
        for each in result.columns
    )
    classes = tuple(map(hostile, network.classes))
    evaluations = (replace(evaluation, sets=sets, id_name=hostile("id")),)
    changed = replace(
        plain,
        results=(replace(result, name=hostile("run"), columns=columns),),
        networks=(replace(network, classes=classes, evaluations=evaluations, arch=HOSTILE),),
    )
    pictures = [EmbeddedPicture(HOSTILE, HOSTILE, b"<svg/>", "svg")] * 2
    text = write_html([], heading=HOSTILE, app=explorer_of(changed), pictures=pictures)
    (tmp_path / "page.html").write_text(text)
    with opened(chromium, tmp_path / "page.html") as seen:
        assert seen.title() == HOSTILE
        assert seen.locator("#explorer img").count() == 0
        assert not seen.locator("figcaption").first.is_visible()
        seen.get_by_role("link", name="Pictures").click()
        assert seen.locator("figcaption").first.inner_text() == HOSTILE
        assert HOSTILE in seen.locator("#overview").inner_text()
        title = seen.locator("#threshold-title").inner_text()
        assert title == f"energy{HOSTILE} on cifar100{HOSTILE}"
        assert HOSTILE in seen.locator("#id-classes tbody th").first.inner_text()
        seen.get_by_role("slider").press("ArrowLeft")
        assert seen.title() == HOSTILE
