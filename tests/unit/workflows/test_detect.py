"""Fitting and scoring many methods: what takes long is said."""

from oodcli.methods import parse_methods
from oodcli.methods.contract import toy_problem
from oodcli.progress import Silent
from oodcli.workflows.detect import Detectors, fit_all


def test_every_method_has_its_time() -> None:
    problem = toy_problem()
    detectors = fit_all(
        parse_methods(["msp", "knn", "vim:dim=64"]), problem.reference, progress=Silent()
    )
    assert list(detectors.seconds) == ["msp", "knn", "vim:dim=64"]
    fitted = dict(detectors.seconds)
    activations = problem.reference.calibration
    detectors.score(activations, "some", progress=Silent())
    assert detectors.seconds["knn"] > fitted["knn"] > 0
    assert detectors.seconds["vim:dim=64"] == fitted["vim:dim=64"]  # not defined, not scored


def test_slow_methods_are_named_with_their_share() -> None:
    seconds = {"weiper": 300.0, "gmm": 100.0, "msp": 0.1, "knn": 11.0}
    assert Detectors([], frozenset(), seconds=seconds).slow() == (
        "most of the 7 min of fitting and scoring went to: weiper 5 min, gmm 2 min "
        "(--method names those that are wanted)"
    )
    assert Detectors([], frozenset(), seconds={"weiper": 9.0, "msp": 0.1}).slow() is None
    assert Detectors([], frozenset(), seconds={"weiper": 900.0}).slow() is None
