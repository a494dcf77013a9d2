"""Fitting and scoring many methods: what takes long is said."""

from oodcli.methods import parse_methods
from oodcli.methods.contract import toy_problem
from oodcli.progress import Silent
from oodcli.scoring.fitting import FittedMethods, fit_all


def test_every_method_has_its_time() -> None:
    problem = toy_problem()
    detectors = fit_all(
        parse_methods(["msp", "knn", "vim:dim=64"]), problem.reference, progress=Silent()
    )
    assert list(detectors.seconds) == ["msp", "knn", "vim:dim=64"]
    activations = problem.reference.calibration
    after, _ = detectors.score(activations, "some", progress=Silent())
    assert after.seconds["knn"] > detectors.seconds["knn"] > 0
    assert after.seconds["vim:dim=64"] == detectors.seconds["vim:dim=64"]  # not defined, not scored


def test_slow_methods_are_named_with_their_share() -> None:
    seconds = {"weiper": 300.0, "gmm": 100.0, "msp": 0.1, "knn": 11.0}
    assert FittedMethods(seconds=seconds).slow() == (
        "most of the 7 min of fitting and scoring went to: weiper 5 min, gmm 2 min "
        "(select methods with --method)"
    )
    assert FittedMethods(seconds={"weiper": 9.0, "msp": 0.1}).slow() is None
    assert FittedMethods(seconds={"weiper": 900.0}).slow() is None
