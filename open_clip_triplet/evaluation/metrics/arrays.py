"""Types, and the check that features are numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def finite(name: str, features: ArrayLike) -> Floats:
    """The features as an array.

    Raises:
        ValueError: a row holds NaN or infinity. Every comparison with NaN is false, so that counting
            the wrong answers that score higher would find none and print 100 %.
    """
    array = np.asarray(features)
    bad = int((~np.isfinite(array).all(axis=-1)).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {len(array)} rows are NaN or infinite")
    return array
