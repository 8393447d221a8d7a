"""The tests that `kitchen.drift` makes."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

class _Result(NamedTuple):
    statistic: float
    pvalue: float

def ks_2samp(data1: ArrayLike, data2: ArrayLike, *, method: Literal["auto", "exact", "asymp"] = "auto") -> _Result: ...
def fisher_exact(table: ArrayLike) -> _Result: ...

class _Chi2:
    def sf(self, x: float, df: float) -> np.float64: ...

chi2: _Chi2
