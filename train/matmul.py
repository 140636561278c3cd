"""Products of large matrices, by the BLAS that SciPy brings.

numpy 1.26, the newest that tflite-runtime works beside, brings one of 2023, which takes processors that it
does not know, such as Xeons with AMX, for those of 2004, and multiplies as slowly.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs


def matmul(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """a [n, m] times b [m, k], both float32 or float64: [n, k] in C's order.

    BLAS counts in columns, so it is asked for the transposed product, and copies nothing that is contiguous.
    """
    gemm = get_blas_funcs("gemm", (a, b))
    (left, turn_left), (right, turn_right) = ((m.T, 0) if m.flags.c_contiguous else (m, 1) for m in (b, a))
    return np.asarray(gemm(1.0, left, right, trans_a=turn_left, trans_b=turn_right).T)
