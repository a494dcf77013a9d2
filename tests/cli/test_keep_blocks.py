"""Pooled maps of blocks, and features of jigsaw puzzles, that are stored on request."""

import json
from pathlib import Path

import pytest

from tests.support.cli import Ood, flat

MULTI = {"multi-mahalanobis", "multi-knn"}
# Widths of the blocks of resnet18:width=2, twice each.
NUMBERS = 2 * (2 + 4 + 8 + 16)


@pytest.fixture
def odd(tiny: Path, tmp_path: Path) -> Path:
    """Return a folder of 7 images of another kind; the store has a run on 24 training images."""
    assert tiny.is_dir()
    return flat(tmp_path / "odd")


def of_json(ood: Ood, *argv: object) -> tuple[dict[str, object], str]:
    code, out, err = ood("score", *argv, "--format", "json")
    assert code == 0, err
    return json.loads(out), " ".join(err.split())


def computed(table: dict[str, object]) -> dict[str, int]:
    return {each["dataset"]: each["computed"] for each in table["passes"]}  # type: ignore[attr-defined]


def test_blocks_are_priced_stored_and_used(ood: Ood, odd: Path) -> None:
    keep = ("--ood", odd, "--method", "msp", "--keep-blocks")
    table, said = of_json(ood, *keep)
    # 24 test images, 7 others, and 24 training images, which also calibrate.
    price = f"pooled maps of 8 blocks ({NUMBERS} numbers per image) of 55 images take"
    assert price in said
    assert f"{55 * 4 * NUMBERS:,} bytes in the store; those of 0 images are stored" in said
    assert sum(computed(table).values()) == 55
    assert {row["method"] for row in table["rows"]} == {"msp"}  # type: ignore[attr-defined]
    # They are used without another pass, by methods that are named and by those of the group.
    again, said = of_json(
        ood, "--ood", odd, "--method", "multi-knn", "--method", "multi-knn:by=mean"
    )
    assert sum(computed(again).values()) == 0
    assert "of 0 images take 0 bytes in the store; those of 55 images are stored" in said
    both, _ = of_json(ood, "--ood", odd, "--keep-blocks")
    tabled = {row["method"] for row in both["rows"]}  # type: ignore[attr-defined]
    assert tabled | set(both["left_out"]) >= MULTI  # type: ignore[call-overload]
    assert not MULTI & {row["method"] for row in of_json(ood, "--ood", odd)[0]["rows"]}  # type: ignore[attr-defined]


def test_a_plan_prices_blocks(ood: Ood, odd: Path) -> None:
    plain, _ = of_json(ood, "--ood", odd, "--method", "msp", "--dry-run")
    plan, said = of_json(ood, "--ood", odd, "--method", "msp", "--keep-blocks", "--dry-run")
    sizes = [
        sum(each["bytes"] for each in found["passes"])  # type: ignore[attr-defined]
        for found in (plain, plan)
    ]
    core = 4 * 8 + 4 * (2 + 16) + 8  # block norms, logits and features, and the predicted class
    assert sizes[1] - sizes[0] == 55 * 4 * NUMBERS + 24 * core
    assert "pooled maps of 8 blocks" in said


@pytest.mark.parametrize("limit", ["0.00001", "0"])
def test_too_many_bytes_are_refused_before_the_work(ood: Ood, odd: Path, limit: str) -> None:
    code, out, err = ood("score", "--ood", odd, "--keep-blocks", "--blocks-limit", limit)
    assert (code, out) == (1, "")
    said = " ".join(err.split())
    assert "forward pass" not in said
    if limit == "0":
        assert "--blocks-limit must be above 0, not 0" in said
    else:
        assert "of 55 images need 13,200 bytes, more than the limit of 1e-05 GB;" in said
        assert "raise the limit: --blocks-limit GB" in said


def test_a_full_disk_is_refused_before_the_work(
    ood: Ood, odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_json(ood, "--ood", odd, "--method", "msp")
    monkeypatch.setattr("oodcli.store.store.free_bytes", lambda _path: 13_000)
    code, _, err = ood("score", "--ood", odd, "--method", "msp", "--keep-blocks")
    assert code == 1
    assert "pooled maps of 8 blocks" in " ".join(err.split())
    assert "forward pass" not in err


def test_a_method_is_recommended_among_those_of_stored_blocks(ood: Ood, odd: Path) -> None:
    code, _, err = ood("score", "--ood", odd, "--method", "msp", "--keep-blocks")
    assert code == 0, err
    code, out, err = ood("recommend", "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    tried = {each["family"] for each in found["candidates"]}
    assert "multi-knn" in tried
    assert not any("more than one forward pass" in why for why in found["left_out"].values())


def test_blocks_and_regions_of_training_images_take_one_pass(ood: Ood, odd: Path) -> None:
    table, _ = of_json(
        ood, "--ood", odd, "--method", "csd", "--method", "multi-knn", "--keep-blocks"
    )
    assert {row["method"] for row in table["rows"]} == {"csd", "multi-knn"}  # type: ignore[attr-defined]
    assert computed(table)["colours train"] == 24


def test_puzzles_are_run_once_for_norms_and_features(ood: Ood, odd: Path) -> None:
    named = ("--method", "featurenorm", "--method", "mfs-knn", "--method", "mfs-knn:keep=0.1")
    table, _ = of_json(ood, "--ood", odd, *named)
    # Training images plain and as puzzles.
    assert computed(table)["colours train"] == 48
    again, _ = of_json(
        ood, "--ood", odd, "--method", "featurenorm", "--method", "mfs-mds++:keep=0.2"
    )
    assert sum(computed(again).values()) == 0
