"""Where the positions of a block's map are, if not in the last two dimensions."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """How the output of a block is read as maps ``(n, c, h, w)``.

    Parameters
    ----------
    kind
        ``nchw``, ``nhwc``, or ``tokens`` for ``(n, t, c)``.
    prefix
        How many tokens come before those of the image: class, distillation and register tokens.
        They are left out.
    """

    kind: Literal["nchw", "nhwc", "tokens"] = "nchw"
    prefix: int = 0

    def maps(self, output: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return the maps, without a copy.

        Parameters
        ----------
        output
            Output of the block; of a tuple, the tokens that come first.

        Notes
        -----
        Tokens lie in a square where their number allows it, and in one column otherwise; a norm
        over positions is the same.
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
