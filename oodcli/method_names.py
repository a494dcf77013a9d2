"""Other names of the methods, as in papers and in other programs; imports no torch."""

from collections.abc import Mapping
from types import MappingProxyType

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "ash": "ash-b",
        "baseline": "msp",
        "decoupling-maxlogit": "dml",
        "cosine": "maxcosine",
        "deep-nearest-neighbors": "knn",
        "ebo": "energy",
        "energybased": "energy",
        "fisher-rao": "igeood",
        "feature-norm": "featurenorm",
        "generalized-entropy": "gen",
        "gl-mcm": "glmcm",
        "grad-uncertainty": "graduncertainty",
        "gram-matrices": "gram",
        "hopfield": "she",
        "i-odin": "iodin",
        "igeood-logits": "igeood",
        "igeoodlogits": "igeood",
        "kernel-pca": "cop",
        "kl-matching": "klm",
        "kpca": "cop",
        "klmatching": "klm",
        "logit-gap": "logitgap",
        "mahalanobis": "mds",
        "mahalanobis++": "mds++",
        "max-logit": "maxlogit",
        "max-softmax": "msp",
        "maximum-concept-matching": "mcm",
        "maximum-softmax-probability": "msp",
        "maxsoftmax": "msp",
        "mls": "maxlogit",
        "marginal-feature-selection": "mfs-mds",
        "mds-mfs": "mfs-mds",
        "mdspp-mfs": "mfs-mds++",
        "knn-mfs": "mfs-knn",
        "multi-layer-knn": "multi-knn",
        "multimahalanobis": "multi-mahalanobis",
        "mds-ensemble": "multi-mahalanobis",
        "mc-dropout": "mcdropout",
        "mcd": "mcdropout",
        "mode": "csd",
        "nan": "nan-norm",
        "nearest-neighbors": "knn",
        "nearest-neighbours": "knn",
        "neg-label": "neglabel",
        "negative-aware-norm": "nan-norm",
        "neuron-activation-coverage": "nac",
        "pca": "pca-fusion",
        "pcafusion": "pca-fusion",
        "regularized-pca": "pca-fusion",
        "perturbation-rectified": "pro",
        "pro-gen": "pro",
        "relative-angles": "ora",
        "relative-mahalanobis": "rmds",
        "rmd": "rmds",
        "softmax": "msp",
        "temp-scaling": "tempscale",
        "temperature-scaling": "tempscale",
        "typical-features": "bats",
        "virtual-logit-matching": "vim",
        "whitened-lda": "wdiscood",
    }
)
"""Name in ood by other name, in lower case with hyphens."""


def usual_name(name: str) -> str | None:
    """Return the name in ood of a method given by another name; None if there is none.

    Examples
    --------
    >>> usual_name("MLS"), usual_name("Temp_Scaling"), usual_name("knn")
    ('maxlogit', 'tempscale', None)
    """
    return ALIASES.get(name.lower().replace("_", "-").replace(" ", "-"))
