"""The registry of objectives, by their name on the command line."""

from collections.abc import Mapping
from types import MappingProxyType

from oodcli.training.objectives.alpa import ALPA
from oodcli.training.objectives.ascood import ASCOOD
from oodcli.training.objectives.background import Background
from oodcli.training.objectives.base import ObjectiveEntry, ObjectiveSpec
from oodcli.training.objectives.base import parse_objective as _parse_objective
from oodcli.training.objectives.cider import CIDER
from oodcli.training.objectives.conf_branch import ConfBranch
from oodcli.training.objectives.cross_entropy import CrossEntropy
from oodcli.training.objectives.energy_regularised import EnergyRegularised
from oodcli.training.objectives.entropic import Entropic, Objectosphere
from oodcli.training.objectives.godin import GODIN
from oodcli.training.objectives.ish import ISH
from oodcli.training.objectives.logitnorm import LogitNorm
from oodcli.training.objectives.mixoe import MixOE
from oodcli.training.objectives.oe import OutlierExposure
from oodcli.training.objectives.palm import PALM
from oodcli.training.objectives.reweightood import ReweightOOD
from oodcli.training.objectives.rotpred import RotPred
from oodcli.training.objectives.supcon import SupCon
from oodcli.training.objectives.t2fnorm import T2FNorm
from oodcli.training.objectives.vos import VOS

OBJECTIVES: Mapping[str, ObjectiveEntry] = MappingProxyType(
    {
        "cross-entropy": ObjectiveEntry(CrossEntropy, "cross-entropy", ""),
        "t2fnorm": ObjectiveEntry(T2FNorm, "T2FNorm", "Regmi et al., CVPRW 2024"),
        "logitnorm": ObjectiveEntry(LogitNorm, "LogitNorm", "Wei et al., ICML 2022"),
        "ish": ObjectiveEntry(ISH, "ISH", "Xu et al., ICLR 2024"),
        "rotpred": ObjectiveEntry(RotPred, "RotPred", "Hendrycks et al., NeurIPS 2019"),
        "conf-branch": ObjectiveEntry(ConfBranch, "ConfBranch", "DeVries and Taylor, 2018"),
        "g-odin": ObjectiveEntry(GODIN, "G-ODIN", "Hsu et al., CVPR 2020"),
        "vos": ObjectiveEntry(VOS, "VOS", "Du et al., ICLR 2022"),
        "supcon": ObjectiveEntry(SupCon, "SupCon", "Khosla et al., NeurIPS 2020"),
        "cider": ObjectiveEntry(CIDER, "CIDER", "Ming et al., ICLR 2023"),
        "palm": ObjectiveEntry(PALM, "PALM", "Lu et al., ICLR 2024"),
        "reweightood": ObjectiveEntry(ReweightOOD, "ReweightOOD", "Regmi et al., CVPRW 2024"),
        "alpa": ObjectiveEntry(ALPA, "ALPA", "Zhang et al., IEEE TIP 2023"),
        "ascood": ObjectiveEntry(ASCOOD, "ASCOOD", "Regmi, arXiv 2024"),
        "oe": ObjectiveEntry(OutlierExposure, "Outlier Exposure", "Hendrycks et al., ICLR 2019"),
        "energy-regularised": ObjectiveEntry(
            EnergyRegularised, "Energy-regularised", "Liu et al., NeurIPS 2020"
        ),
        "entropic": ObjectiveEntry(Entropic, "Entropic open-set", "Dhamija et al., NeurIPS 2018"),
        "objectosphere": ObjectiveEntry(
            Objectosphere, "Objectosphere", "Dhamija et al., NeurIPS 2018"
        ),
        "background": ObjectiveEntry(
            Background, "background class", "Dhamija et al., NeurIPS 2018"
        ),
        "mixoe": ObjectiveEntry(MixOE, "MixOE", "Zhang et al., WACV 2023"),
    }
)


def parse_objective(text: str) -> ObjectiveSpec:
    """Parse an objective from its text on the command line.

    Raises
    ------
    UnknownNameError
        If the objective or a parameter is unknown.
    InvalidInputError
        If a value is invalid for its parameter.
    """
    return _parse_objective(text, OBJECTIVES)
