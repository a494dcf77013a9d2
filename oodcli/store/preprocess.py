"""Preprocessing of images before the network, as runs and exports record it."""

from dataclasses import dataclass, replace
from typing import Any, Self

from oodcli.errors import InvalidInputError
from oodcli.resizing import Resize
from oodcli.windows import Window, canonical, window_of


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of images before the network.

    Parameters
    ----------
    size
        Height and width in pixels.
    resize
        How images are resized: ``exact`` (aspect ratio not preserved), ``shorter-crop`` or
        ``shorter-crop:SIDE`` (shorter side to that length, then a centre crop); followed by the
        filter, as in ``shorter-crop:256:bicubic``, unless it is ``bilinear``; and by ``:draft``
        if JPEG files are decoded at a reduced size.
    mean, std
        Normalisation of the three channels, for pixel values from 0 to 1.
    window
        Which values of medical images are black and white, as :class:`oodcli.windows.Window` is
        written; empty if no window was given.
    """

    size: tuple[int, int] = (32, 32)
    resize: str = "exact"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    window: str = ""

    @property
    def filter(self) -> str:
        """The filter of ``resize``, one of :data:`oodcli.resizing.FILTERS`."""
        return Resize.of(self.resize).used

    @property
    def medical(self) -> Window | None:
        """The window, taken apart."""
        return window_of(self.window)

    @property
    def draft(self) -> bool:
        """Whether JPEG files are decoded at a reduced size."""
        return Resize.of(self.resize).draft

    def through(self, window: str | None, *, jpeg_draft: bool = False, where: str) -> Self:
        """Return the same preprocessing with a window for medical images.

        Parameters
        ----------
        window
            As ``--window`` has it; None for that of the run, if it has one.
        jpeg_draft
            Whether ``--jpeg-draft`` is given.
        where
            What has this preprocessing, for messages.

        Raises
        ------
        InvalidInputError
            If it is no window, or there is another one, with which the images of the network were
            read; or if drafts are wanted, and those images were decoded whole.
        """
        if jpeg_draft and not self.draft:
            raise InvalidInputError(
                f"{where} decodes JPEG files at their whole size, which also made the images of "
                "its network; omit --jpeg-draft, or train or import the network with --jpeg-draft"
            )
        wanted = canonical(window)
        if wanted in ("", self.window):
            return self
        if self.window:
            raise InvalidInputError(
                f"{where} reads medical images with the window {self.window}, which also made the "
                f"images of its network; omit --window {wanted}"
            )
        return replace(self, window=wanted)

    def to_json(self) -> dict[str, Any]:
        """Return the preprocessing as an object of records and exports."""
        window = {"window": self.window} if self.window else {}
        return {
            "size": list(self.size),
            "resize": self.resize,
            "filter": self.filter,
            "mean": list(self.mean),
            "std": list(self.std),
            **window,
        }


DEFAULT_PREPROCESS = Preprocess()
