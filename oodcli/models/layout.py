"""The memory layouts of block outputs, and their conversion to feature maps."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Conversion of the output of a block to feature maps ``(n, c, h, w)``.

    Parameters
    ----------
    kind
        ``nchw``, ``nhwc``, or ``tokens`` for ``(n, t, c)``.
    prefix
        Number of tokens before those of the image: class, distillation and register tokens, which
        are skipped.
    """

    kind: Literal["nchw", "nhwc", "tokens"] = "nchw"
    prefix: int = 0

    def maps(self, output: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the feature maps as a view, ``(n, c, h, w)``.

        Parameters
        ----------
        output
            Output of the block; of a tuple, the first element is used.

        Notes
        -----
        Tokens are arranged in a square if their number is a square number, otherwise in one column;
        norms over positions are the same for both.
        """
        output = output[0] if isinstance(output, tuple) else output
        if self.kind == "nchw":
            return output
        if self.kind == "nhwc":
            return output.permute(0, 3, 1, 2)
        channels_first = output[:, self.prefix :].transpose(1, 2)  # (n, c, t)
        side = math.isqrt(channels_first.shape[2])
        if side * side != channels_first.shape[2]:
            side = 1
        return channels_first.unflatten(2, (-1, side))  # (n, c, h, w)


PLAIN = Layout()
