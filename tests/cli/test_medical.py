"""CT slices with a window: trained on, scored and screened."""

import csv
import json

import numpy as np
import pytest

from tests.support.medical import PATIENT, write_dicom, write_nifti

pytest.importorskip("pydicom", reason="the extra medical is not installed")
pytest.importorskip("nibabel", reason="the extra medical is not installed")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for part, n in (("train", 6), ("test", 3)):
        for kind, mean in (("liver", 1060), ("lung", 700)):
            for at in range(n):
                write_dicom(
                    root / "ct" / part / kind / f"IM{at}",
                    rng.normal(mean, 60, (32, 32)).astype(np.uint16),
                    RescaleSlope=1,
                    RescaleIntercept=-1024,
                    BitsStored=12,
                    WindowCenter=40,
                    WindowWidth=400,
                )
    voxels = rng.integers(-1000, 1000, (32, 32, 3)).astype(np.int16)
    write_nifti(root / "ood" / "head.nii.gz", voxels, np.eye(4))
    return root


def test_a_run_keeps_its_window(ood, scans, tmp_path):
    train = ["train", "--data", scans / "ct", "--arch", "resnet18:width=2", "--epochs", "1",
             "--batch-size", "8", "--name", "ct"]  # fmt: skip
    code, _, err = ood(*train)
    assert code == 1
    (line,) = [each for each in err.splitlines() if each.startswith("error: ")]
    assert (
        "its grey values of 12 bits need a window; the file names 40/400: --window 40/400" in line
    )
    assert PATIENT not in err
    code, _, err = ood(*train, "--window", "40/400")
    assert code == 0, err
    code, out, err = ood("runs", "show", "ct")
    assert code == 0, err
    assert json.loads(out)["preprocess"]["window"] == "40/400"

    score = ["score", "--ood", scans / "ood", "--method", "msp"]
    code, _, err = ood(*score)
    assert code == 0, err
    assert "3 images in 1 file (slices of volumes: axial)" in err
    code, _, err = ood(*score, "--window", "40/350")
    assert code == 1
    assert "run ct reads medical images with the window 40/400" in err

    verdicts, copies = tmp_path / "verdicts.csv", tmp_path / "copies"
    predict = ["predict", scans / "ood", scans / "ct" / "test", "--threshold", "99"]
    code, _, err = ood(*predict, "--output", verdicts, "--copy-ood", copies)
    assert code == 0, err
    rows = list(csv.DictReader(verdicts.read_text().splitlines()))
    assert [row["path"] for row in rows[:3]] == [
        f"{scans}/ood/head.nii.gz[{at}]" for at in range(3)
    ]
    assert {row["verdict"] for row in rows} == {"ood"}
    assert sorted(path.name for path in copies.rglob("*") if path.is_file()) == sorted(
        [f"head.nii.gz[{at}].png" for at in range(3)] + [f"IM{at}" for at in range(3)] * 2
    )
    code, out, err = ood(*predict, "--output", verdicts, "--copy-ood", copies)
    assert code == 0, err
    assert len(list(csv.DictReader(verdicts.read_text().splitlines()))) == len(rows)


def test_a_run_of_other_images_takes_a_window_for_a_set(ood, tiny, scans):
    code, _, err = ood("score", "--ood", scans / "ood", "--method", "msp")
    assert code == 1
    assert "head.nii.gz[0]: its voxels of type int16 need a window" in err
    code, _, err = ood("score", "--ood", scans / "ood", "--method", "msp", "--window", "40/400")
    assert code == 0, err
    code, out, err = ood(
        "predict", scans / "ood", "--window", "-1000..1000:sagittal", "--format", "csv"
    )
    assert code == 0, err
    found = list(csv.DictReader(out.splitlines()))
    assert len(found) == 32
    assert not any(row["error"] for row in found)
