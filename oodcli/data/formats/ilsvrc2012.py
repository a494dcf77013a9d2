"""Facts of ImageNet (ILSVRC 2012): its classes, and the truth of its validation images.

References
----------
Russakovsky et al. "ImageNet Large Scale Visual Recognition Challenge". IJCV 2015.
"""

import base64
import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FACTS = Path(__file__).with_name("ilsvrc2012.json")


@cache
def wnids() -> tuple[str, ...]:
    """Return the 1,000 classes in the order of every network's outputs: sorted."""
    return tuple(_facts()["wnids"])


def readable_class(name: str) -> str:
    """Return the name of a class with its wnid, if it is a wnid of ImageNet-1k; else as it is.

    Examples
    --------
    >>> readable_class("n04254777")
    'sock (n04254777)'
    >>> readable_class("cat")
    'cat'
    """
    word = class_word(name)
    return name if word == name else f"{word} ({name})"


def class_word(name: str) -> str:
    """Return the name of a class without its wnid, if it is a wnid of ImageNet-1k; else as it is.

    Examples
    --------
    >>> class_word("n04254777"), class_word("cat")
    ('sock', 'cat')
    """
    return _names_of_wnids().get(name, name)


@cache
def _names_of_wnids() -> dict[str, str]:
    facts = _facts()
    return dict(zip(facts["wnids"], facts["names"], strict=True))


@cache
def ground_truth() -> NDArray[np.int64]:
    """Return the class of every validation image by its number from 1, ``(50000,)``."""
    return _packed("validation")


@cache
def devkit_order() -> NDArray[np.int64]:
    """Return the class with each ``ILSVRC2012_ID`` of the development kit, from 1, ``(1000,)``."""
    return _packed("devkit")


def _packed(name: str) -> NDArray[np.int64]:
    packed = zlib.decompress(base64.b64decode(_facts()[name]))
    return np.frombuffer(packed, dtype="<u2").astype(np.int64)


@cache
def _facts() -> dict[str, str]:
    facts: dict[str, str] = json.loads(FACTS.read_text("utf-8"))
    return facts
