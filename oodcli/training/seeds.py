"""Seeds of independent random generators, derived from the seed of a run."""

import numpy as np


def derived_seed(*numbers: int) -> int:
    """Return a seed of 63 bits that depends on all the numbers and on their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
