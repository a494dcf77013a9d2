"""What ``ood score`` decodes, runs through the network and stores, counted."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import flat

Ood = Callable[..., tuple[int, str, str]]


def test_no_image_is_computed_twice_for_training_calibration_and_puzzles(
    ood: Ood, tiny: Path, tmp_path: Path
) -> None:
    """The calibration images, a tenth of those of training, are found among these."""
    flat(tmp_path / "odd")
    line = ("score", "--ood", tmp_path / "odd", "--method", "klm", "--method", "mds")
    # klm learns from the two images that there are for it, and refuses them: code 1.
    _, out, err = ood(*line, "--method", "featurenorm", "--format", "json")
    assert "klm is not defined here" in err
    computed = {each["dataset"]: each["computed"] for each in json.loads(out)["passes"]}
    # Of training, every image and its puzzle.
    assert computed == {"colours": 24, "odd": 7, "colours train": 48}
