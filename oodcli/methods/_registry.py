"""The registry of the methods of this package, by their name on the command line."""

from collections.abc import Mapping
from types import MappingProxyType

from oodcli.activations import BACKGROUND, CONFIDENCE, DIVISOR, ROTATION
from oodcli.methods._blocks import COMBINATIONS, DIFFERENT_BLOCKS, in_every_layer
from oodcli.methods._needs import (
    CLASSES,
    CLASSES_WITH_IMAGES,
    CLASSIFIED_RIGHT,
    DIFFERENT_FEATURES,
    KEPT_HEADS,
    NEGATIVE_WORDS,
    ZERO_SHOT,
    varied,
    varied_within_classes,
)
from oodcli.methods.adascale import AdaSCALE
from oodcli.methods.ash import ASHB, ASHP, ASHS
from oodcli.methods.background import Background
from oodcli.methods.base import Method
from oodcli.methods.bats import BATS
from oodcli.methods.cadref import CADRef, CARef
from oodcli.methods.cfood import CFOOD, ONE_OF_A_SHARE
from oodcli.methods.conf_branch import ConfBranch
from oodcli.methods.csd import CSD, DIFFERENT_REGIONS
from oodcli.methods.dice import DICE
from oodcli.methods.dml import DML
from oodcli.methods.doctor import Doctor
from oodcli.methods.energy import Energy
from oodcli.methods.entropy import Entropy
from oodcli.methods.fdbd import FDBD
from oodcli.methods.featurenorm import SEVERAL_IMAGES, FeatureNorm, SelectedNorm
from oodcli.methods.gen import GEN
from oodcli.methods.glmcm import GLMCM
from oodcli.methods.gmm import GMM
from oodcli.methods.godin import GODIN
from oodcli.methods.gradnorm import GradNorm
from oodcli.methods.graduncertainty import GradUncertainty
from oodcli.methods.gram import ONE_HELD_OUT, Gram
from oodcli.methods.igeood import Igeood
from oodcli.methods.kernel_pca import CoP, CoRP, PCAFusion
from oodcli.methods.klm import TYPICAL, KLMatching
from oodcli.methods.knn import KNN
from oodcli.methods.logitgap import LogitGap
from oodcli.methods.lts import LTS
from oodcli.methods.mahalanobis import MDS, RMDS, MDSPlusPlus, RMDSPlusPlus
from oodcli.methods.maxcosine import MaxCosine
from oodcli.methods.maxlogit import MaxLogit
from oodcli.methods.mcdropout import MCDropout
from oodcli.methods.mcm import MCM
from oodcli.methods.mfs import (
    MFSKNN,
    MFSMahalanobis,
    MFSMahalanobisPlusPlus,
    in_selected_dimensions,
)
from oodcli.methods.msp import MSP
from oodcli.methods.multilayer import MultiKNN, MultiMahalanobis
from oodcli.methods.nac import COVERED, NAC
from oodcli.methods.nan_norm import NegativeAwareNorm
from oodcli.methods.nci import NCI
from oodcli.methods.neco import MORE_IMAGES_THAN_COMPONENTS, NECO
from oodcli.methods.neglabel import NegLabel
from oodcli.methods.nnguide import NNGuide
from oodcli.methods.objectosphere import Objectosphere
from oodcli.methods.odin import IODIN, ODIN
from oodcli.methods.openmax import BEYOND_TAIL, OpenMax
from oodcli.methods.optfs import OptFS
from oodcli.methods.ora import ORA
from oodcli.methods.pnml import PNML
from oodcli.methods.pro import PRO
from oodcli.methods.rankfeat import RankFeat
from oodcli.methods.react import ReAct
from oodcli.methods.relation import Relation
from oodcli.methods.rotpred import RotPred
from oodcli.methods.scale import Scale
from oodcli.methods.she import SHE
from oodcli.methods.t2fnorm import T2FNorm
from oodcli.methods.tempscale import OPTIMUM, TempScale
from oodcli.methods.vim import Residual, ViM
from oodcli.methods.vra import VRA
from oodcli.methods.wdiscood import VARIED, WDiscOOD
from oodcli.methods.weiper import WeiPer

__all__ = ["METHODS"]

# Percentiles that are searched for ASH and SCALE.
PRUNED = (65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)
# Shares of the dimensions that are searched for MFS.
SHARES = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        # From logits.
        "msp": Method(
            MSP,
            "MSP",
            "Hendrycks and Gimpel, ICLR 2017",
            ("logits",),
            needs=(CLASSES,),
            exportable=True,
        ),
        "maxlogit": Method(
            MaxLogit,
            "MaxLogit",
            "Hendrycks et al., ICML 2022",
            ("logits",),
            exportable=True,
        ),
        "energy": Method(
            Energy,
            "Energy",
            "Liu et al., NeurIPS 2020",
            ("logits",),
            exportable=True,
        ),
        "entropy": Method(
            Entropy,
            "entropy",
            "Chan et al., ICCV 2021",
            ("logits",),
            needs=(CLASSES,),
            exportable=True,
        ),
        "tempscale": Method(
            TempScale,
            "temperature scaling",
            "Guo et al., ICML 2017",
            ("logits", "calibration", "calibration labels"),
            needs=(CLASSES, OPTIMUM),
            exportable=True,
        ),
        "gen": Method(
            GEN,
            "GEN",
            "Liu et al., CVPR 2023",
            ("logits",),
            grid={
                "gamma": (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0),
                "m": (10, 50, 100, 200, 500, 1000),
            },
            needs=(CLASSES,),
            exportable=True,
        ),
        "klm": Method(
            KLMatching,
            "KL matching",
            "Hendrycks et al., ICML 2022",
            ("logits", "calibration"),
            needs=(CLASSES, TYPICAL),
            exportable=True,
        ),
        "doctor": Method(
            Doctor,
            "DOCTOR",
            "Granese et al., NeurIPS 2021",
            ("logits",),
            needs=(CLASSES,),
            exportable=True,
        ),
        "logitgap": Method(
            LogitGap,
            "LogitGap",
            "Liang et al., NeurIPS 2025",
            ("logits",),
            grid={"n": (5, 10, 20, 88)},
            needs=(CLASSES,),
            exportable=True,
        ),
        "igeood": Method(
            Igeood,
            "Igeood (logits)",
            "Dadalto Camara Gomes et al., ICLR 2022",
            ("logits", "train", "labels"),
            grid={"temperature": (1.0, 2.0, 5.0, 10.0, 100.0)},
            needs=(CLASSES,),
        ),
        # From block norms.
        "featurenorm": Method(
            FeatureNorm,
            "FeatureNorm",
            "Yu et al., CVPR 2023",
            ("block norms", "train", "jigsaw"),
            needs=(SEVERAL_IMAGES,),
            exportable=True,
        ),
        "norm": Method(
            SelectedNorm,
            "selected norm",
            "Yu et al., CVPR 2023",
            ("features", "block norms", "head", "train", "jigsaw"),
            needs=(SEVERAL_IMAGES,),
            exportable=True,
        ),
        # From features and the last layer.
        "react": Method(
            ReAct,
            "ReAct",
            "Sun et al., NeurIPS 2021",
            ("features", "head", "calibration"),
            grid={"percentile": (85.0, 90.0, 95.0, 99.0)},
            exportable=True,
        ),
        "vra": Method(
            VRA,
            "VRA",
            "Xu et al., NeurIPS 2023",
            ("features", "head", "calibration"),
            grid={"high": (85.0, 90.0, 95.0, 99.0), "low": (1.0, 5.0, 10.0, 15.0)},
            exportable=True,
        ),
        "bats": Method(
            BATS,
            "BATS",
            "Zhu et al., NeurIPS 2022",
            ("features", "head", "train"),
            grid={"lmbda": (0.5, 1.05, 2.0, 3.25)},
            needs=(DIFFERENT_FEATURES,),
            exportable=True,
        ),
        "ash-p": Method(
            ASHP,
            "ASH-P",
            "Djurisic et al., ICLR 2023",
            ("features", "head"),
            grid={"percentile": PRUNED},
            exportable=True,
        ),
        "ash-b": Method(
            ASHB,
            "ASH-B",
            "Djurisic et al., ICLR 2023",
            ("features", "head"),
            grid={"percentile": PRUNED},
            exportable=True,
        ),
        "ash-s": Method(
            ASHS,
            "ASH-S",
            "Djurisic et al., ICLR 2023",
            ("features", "head"),
            grid={"percentile": PRUNED},
            exportable=True,
        ),
        "scale": Method(
            Scale,
            "SCALE",
            "Xu et al., ICLR 2024",
            ("logits", "features", "head"),
            grid={"percentile": PRUNED},
            exportable=True,
        ),
        "lts": Method(
            LTS,
            "LTS",
            "Djurisic et al., MVA 2025",
            ("logits", "features"),
            exportable=True,
        ),
        "dice": Method(
            DICE,
            "DICE",
            "Sun and Li, ECCV 2022",
            ("features", "head", "train"),
            grid={"p": (10.0, 30.0, 50.0, 70.0, 90.0)},
            exportable=True,
        ),
        "optfs": Method(
            OptFS,
            "OptFS",
            "Zhao et al., ICLR 2024",
            ("features", "head", "train"),
            exportable=True,
        ),
        "weiper": Method(
            WeiPer,
            "WeiPer+KLD",
            "Granz et al., NeurIPS 2024",
            ("logits", "features", "head", "train"),
            # The published grid has 3,600 settings; these 20 are those that cost no new densities.
            grid={"lambda_1": (0.1, 1.0, 2.5, 4.0), "lambda_2": (0.1, 0.25, 1.0, 2.5, 5.0)},
        ),
        "t2fnorm": Method(
            T2FNorm,
            "T2FNorm",
            "Regmi et al., CVPRW 2024",
            ("logits", "head"),
            needs=(CLASSES,),
            exportable=True,
        ),
        "gradnorm": Method(
            GradNorm,
            "GradNorm",
            "Huang et al., NeurIPS 2021",
            ("logits", "features"),
            needs=(CLASSES,),
            exportable=True,
        ),
        "graduncertainty": Method(
            GradUncertainty,
            "GradUncertainty",
            "Lee and AlRegib, ICIP 2020",
            ("logits", "features"),
            needs=(CLASSES,),
            exportable=True,
        ),
        "dml": Method(
            DML,
            "DML",
            "Zhang and Xiang, CVPR 2023",
            ("logits", "features", "head"),
            grid={"lmbda": (0.0005, 0.002, 0.01, 0.05)},
            exportable=True,
        ),
        "objectosphere": Method(
            Objectosphere,
            "Objectosphere",
            "Dhamija et al., NeurIPS 2018",
            ("logits", "features"),
            needs=(CLASSES,),
            exportable=True,
            on_request=True,
        ),
        "nan-norm": Method(
            NegativeAwareNorm,
            "NAN",
            "Park et al., ICCV 2023",
            ("features",),
            exportable=True,
        ),
        "fdbd": Method(
            FDBD,
            "fDBD",
            "Liu and Qin, ICML 2024",
            ("logits", "features", "head", "train"),
            grid={"distance_as_normalizer": (True, False)},
            needs=(CLASSES, DIFFERENT_FEATURES),
            exportable=True,
        ),
        "ora": Method(
            ORA,
            "ORA",
            "Demirel et al., NeurIPS 2025",
            ("logits", "features", "head", "train", "labels"),
            grid={"over": ("max", "mean", "min")},
            needs=(CLASSES, DIFFERENT_FEATURES),
            exportable=True,
        ),
        "nci": Method(
            NCI,
            "NCI",
            "Liu and Qin, CVPR 2025",
            ("logits", "features", "head", "train"),
            grid={"alpha": (0.0001, 0.001, 0.01, 0.1)},
            needs=(DIFFERENT_FEATURES,),
            exportable=True,
        ),
        # From neighbours and class statistics of the training images.
        "knn": Method(
            KNN,
            "KNN",
            "Sun et al., ICML 2022",
            ("features", "train"),
            grid={"k": (50, 100, 200, 500, 1000)},
            needs=(DIFFERENT_FEATURES,),
            exportable=True,
        ),
        "cfood": Method(
            CFOOD,
            "CFOOD",
            "OpenOOD, 2026",
            ("features", "train"),
            grid={"k": (0.001, 0.005, 0.01, 0.05)},
            needs=(DIFFERENT_FEATURES, ONE_OF_A_SHARE),
            on_request=True,
        ),
        "nnguide": Method(
            NNGuide,
            "NNGuide",
            "Park et al., ICCV 2023",
            ("logits", "features", "train"),
            needs=(DIFFERENT_FEATURES,),
            exportable=True,
        ),
        "relation": Method(
            Relation,
            "Relation",
            "Kim et al., NeurIPS 2023",
            ("logits", "features", "train"),
            grid={"power": (1.0, 2.0, 4.0, 6.0, 8.0)},
            needs=(DIFFERENT_FEATURES,),
        ),
        "mds": Method(
            MDS,
            "MDS",
            "Lee et al., NeurIPS 2018",
            ("features", "train", "labels"),
            needs=(DIFFERENT_FEATURES, varied_within_classes()),
            exportable=True,
        ),
        "rmds": Method(
            RMDS,
            "RMDS",
            "Ren et al., 2021",
            ("features", "train", "labels"),
            needs=(CLASSES_WITH_IMAGES, DIFFERENT_FEATURES, varied_within_classes(), varied()),
            exportable=True,
        ),
        "mds++": Method(
            MDSPlusPlus,
            "Mahalanobis++",
            "Mueller and Hein, ICML 2025",
            ("features", "train", "labels"),
            needs=(DIFFERENT_FEATURES, varied_within_classes(normalised=True)),
            exportable=True,
        ),
        "rmds++": Method(
            RMDSPlusPlus,
            "relative Mahalanobis++",
            "Mueller and Hein, ICML 2025",
            ("features", "train", "labels"),
            needs=(
                CLASSES_WITH_IMAGES,
                DIFFERENT_FEATURES,
                varied_within_classes(normalised=True),
                varied(normalised=True),
            ),
            exportable=True,
        ),
        "mfs-mds": Method(
            MFSMahalanobis,
            "MFS with jigsaws + MDS",
            "ours, after OpenMIBOOD, 2026",
            ("features", "train", "labels", "jigsaw features"),
            grid={"keep": SHARES},
            needs=(
                in_selected_dimensions(DIFFERENT_FEATURES, normalised=False),
                in_selected_dimensions(varied_within_classes(), normalised=False),
            ),
            exportable=True,
            on_request=True,
        ),
        "mfs-mds++": Method(
            MFSMahalanobisPlusPlus,
            "MFS with jigsaws + Mahalanobis++",
            "ours, after OpenMIBOOD, 2026",
            ("features", "train", "labels", "jigsaw features"),
            grid={"keep": SHARES},
            needs=(
                in_selected_dimensions(DIFFERENT_FEATURES, normalised=True),
                in_selected_dimensions(varied_within_classes(), normalised=True),
            ),
            exportable=True,
            on_request=True,
        ),
        "mfs-knn": Method(
            MFSKNN,
            "MFS with jigsaws + KNN",
            "ours, after OpenMIBOOD, 2026",
            ("features", "train", "jigsaw features"),
            grid={"keep": SHARES, "k": (50, 200, 1000)},
            needs=(in_selected_dimensions(DIFFERENT_FEATURES, normalised=True),),
            exportable=True,
            on_request=True,
        ),
        "wdiscood": Method(
            WDiscOOD,
            "WDiscOOD",
            "Chen et al., ICCV 2023",
            ("features", "train", "labels"),
            grid={"alpha": (0.5, 1.0, 2.0, 5.0, 10.0), "normalised": (False, True)},
            needs=(CLASSES_WITH_IMAGES, DIFFERENT_FEATURES, VARIED),
            exportable=True,
        ),
        "vim": Method(
            ViM,
            "ViM",
            "Wang et al., CVPR 2022",
            ("logits", "features", "head", "train"),
            grid={"dim": (256, 1000)},
            needs=(DIFFERENT_FEATURES, varied()),
            exportable=True,
        ),
        "residual": Method(
            Residual,
            "Residual",
            "Wang et al., CVPR 2022",
            ("features", "head", "train"),
            needs=(DIFFERENT_FEATURES, varied()),
            exportable=True,
            without_classifier=True,
        ),
        "pca-fusion": Method(
            PCAFusion,
            "PCA fusion",
            "Guan et al., ICCV 2023",
            ("logits", "features", "train"),
            grid={"dim": (32, 64, 128, 256, 512)},
            needs=(DIFFERENT_FEATURES, varied()),
            exportable=True,
        ),
        "cop": Method(
            CoP,
            "CoP",
            "Fang et al., NeurIPS 2024",
            ("features", "train"),
            grid={"ratio": (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.99)},
            needs=(DIFFERENT_FEATURES, varied(normalised=True)),
            exportable=True,
        ),
        "corp": Method(
            CoRP,
            "CoRP",
            "Fang et al., NeurIPS 2024",
            ("features", "train"),
            grid={"ratio": (0.5, 0.6, 0.7, 0.8), "gamma": (0.5, 1.0, 2.0, 3.0)},
            needs=(DIFFERENT_FEATURES, varied(normalised=True)),
            exportable=True,
            on_request=True,
        ),
        "neco": Method(
            NECO,
            "NECO",
            "Ben Ammar et al., ICLR 2024",
            ("logits", "features", "train"),
            needs=(DIFFERENT_FEATURES, MORE_IMAGES_THAN_COMPONENTS),
            exportable=True,
        ),
        "she": Method(
            SHE,
            "SHE",
            "Zhang et al., ICLR 2023",
            ("logits", "features", "train", "labels"),
            needs=(DIFFERENT_FEATURES, CLASSIFIED_RIGHT),
        ),
        "maxcosine": Method(
            MaxCosine,
            "MaxCosine",
            "Nguyen et al., 2023",
            ("features", "train", "labels"),
            needs=(DIFFERENT_FEATURES,),
            exportable=True,
        ),
        "caref": Method(
            CARef,
            "CARef",
            "Ling et al., CVPR 2025",
            ("logits", "features", "train"),
            needs=(DIFFERENT_FEATURES,),
        ),
        "cadref": Method(
            CADRef,
            "CADRef",
            "Ling et al., CVPR 2025",
            ("logits", "features", "head", "train"),
            needs=(DIFFERENT_FEATURES,),
        ),
        "gmm": Method(
            GMM,
            "GMM",
            "Yang et al., NeurIPS 2022",
            ("features", "train"),
            needs=(DIFFERENT_FEATURES,),
        ),
        "pnml": Method(
            PNML,
            "pNML",
            "Bibas et al., NeurIPS 2021",
            ("features", "head", "train"),
            needs=(CLASSES, DIFFERENT_FEATURES, varied(normalised=True)),
        ),
        "openmax": Method(
            OpenMax,
            "OpenMax",
            "Bendale and Boult, CVPR 2016",
            ("logits", "head", "train", "labels"),
            needs=(BEYOND_TAIL,),
        ),
        # From probes.
        "csd": Method(
            CSD,
            "MODE (CSD)",
            "Zhang et al., TIP 2023",
            ("train", "regions"),
            grid={"k": (1, 5, 10, 20, 50, 100, 200)},
            needs=(DIFFERENT_REGIONS,),
        ),
        "multi-mahalanobis": Method(
            MultiMahalanobis,
            "multi-layer Mahalanobis",
            "Lee et al., NeurIPS 2018",
            ("train", "labels", "calibration", "blocks"),
            grid={"by": COMBINATIONS, "last": (0, 2, 4)},
            needs=(DIFFERENT_BLOCKS, in_every_layer(varied_within_classes())),
        ),
        "multi-knn": Method(
            MultiKNN,
            "multi-layer KNN",
            "Sun et al., ICML 2022; layers joined: ours",
            ("train", "calibration", "blocks"),
            grid={"by": COMBINATIONS, "last": (0, 4), "k": (50, 200, 1000)},
            needs=(DIFFERENT_BLOCKS,),
        ),
        "odin": Method(
            ODIN,
            "ODIN",
            "Liang et al., ICLR 2018",
            ("network",),
            grid={"temperature": (1.0, 10.0, 100.0, 1000.0), "epsilon": (0.0014, 0.0028)},
            passes=4.0,
            needs=(CLASSES,),
        ),
        "iodin": Method(
            IODIN,
            "i-ODIN",
            "OpenOOD, 2025",
            ("network",),
            grid={"temperature": (1.0, 10.0, 100.0, 1000.0), "epsilon": (0.0014, 0.0028)},
            passes=4.0,
            needs=(CLASSES,),
        ),
        "pro": Method(
            PRO,
            "PRO",
            "Chen et al., CVPR 2025",
            ("network",),
            grid={"epsilon": (0.0003, 0.0005, 0.0008, 0.001), "steps": (1, 2, 3, 5)},
            passes=10.0,
            needs=(CLASSES,),
        ),
        "mcdropout": Method(
            MCDropout,
            "MC dropout",
            "Gal and Ghahramani, ICML 2016",
            ("network",),
            passes=30.0,
            needs=(CLASSES,),
        ),
        "gram": Method(
            Gram,
            "Gram matrices",
            "Sastry and Oore, ICML 2020",
            ("logits", "labels", "network"),
            train_passes=1.0,
            needs=(ONE_HELD_OUT,),
        ),
        "rankfeat": Method(
            RankFeat, "RankFeat", "Song et al., NeurIPS 2022", ("network",), passes=2.0
        ),
        "nac": Method(
            NAC,
            "NAC-UE",
            "Liu et al., ICLR 2024",
            ("logits", "features", "head", "train"),
            grid={
                "alpha": (100.0, 1000.0, 3000.0),
                "bins": (50, 500),
                "least": (10, 50, 500),
            },
            needs=(CLASSES, DIFFERENT_FEATURES, COVERED),
            exportable=True,
        ),
        "adascale": Method(
            AdaSCALE,
            "AdaSCALE",
            "Regmi, 2025",
            ("logits", "features", "head", "calibration", "network"),
            grid={"low": (60.0, 65.0, 70.0, 75.0, 80.0), "high": (85.0, 90.0, 95.0, 99.0)},
            passes=4.0,
        ),
        # From heads that an objective leaves in the weights.
        "rotpred": Method(
            RotPred,
            "RotPred",
            "Hendrycks et al., NeurIPS 2019",
            ("logits", "head", "network"),
            passes=3.0,
            needs=(KEPT_HEADS[ROTATION], CLASSES),
        ),
        "conf-branch": Method(
            ConfBranch,
            "ConfBranch",
            "DeVries and Taylor, 2018",
            ("features", "head"),
            needs=(KEPT_HEADS[CONFIDENCE],),
            exportable=True,
            without_classifier=True,
        ),
        "background": Method(
            Background,
            "background class",
            "Dhamija et al., NeurIPS 2018",
            ("logits", "features", "head"),
            needs=(KEPT_HEADS[BACKGROUND], CLASSES),
            exportable=True,
        ),
        "g-odin": Method(
            GODIN,
            "G-ODIN",
            "Hsu et al., CVPR 2020",
            ("features", "head", "network"),
            grid={"epsilon": (0.0, 0.00125, 0.0025, 0.005)},
            passes=4.0,
            needs=(KEPT_HEADS[DIVISOR], CLASSES),
        ),
        # From text embeddings of a zero-shot classifier.
        "mcm": Method(
            MCM,
            "MCM",
            "Ming et al., NeurIPS 2022",
            ("logits", "head"),
            needs=(ZERO_SHOT, CLASSES),
            exportable=True,
        ),
        "glmcm": Method(
            GLMCM,
            "GL-MCM",
            "Miyai et al., IJCV 2025",
            ("logits", "head", "network"),
            needs=(ZERO_SHOT, CLASSES),
        ),
        "neglabel": Method(
            NegLabel,
            "NegLabel",
            "Jiang et al., ICLR 2024",
            ("features", "head", "words"),
            needs=(ZERO_SHOT, NEGATIVE_WORDS),
            exportable=True,
        ),
    }
)
