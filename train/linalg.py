"""Products and inverses of large matrices, by the BLAS and the LAPACK that SciPy brings.

numpy 1.26, the newest that tflite-runtime works beside, brings one of 2023, which takes processors that it
does not know, such as Xeons with AMX, for those of 2004, and multiplies as slowly. Its threads and
SciPy's also wait for each other, so that beside SciPy's products even small inverses are SciPy's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, get_blas_funcs
from scipy.linalg.lapack import dpotrf, dpotri, dtrtri


def matmul(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """a [n, m] times b [m, k], both float32 or float64: [n, k] in C's order.

    BLAS counts in columns, so it is asked for the transposed product, and copies nothing that is contiguous.
    """
    gemm = get_blas_funcs("gemm", (a, b))
    (left, turn_left), (right, turn_right) = ((m.T, 0) if m.flags.c_contiguous else (m, 1) for m in (b, a))
    return np.asarray(gemm(1.0, left, right, trans_a=turn_left, trans_b=turn_right).T)


def subtract_product(c: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """Takes a [n, m] times b [m, k] from c [n, k] where it lies, all float64 and in C's order."""
    gemm = get_blas_funcs("gemm", (a, b))
    done = gemm(-1.0, b.T, a.T, beta=1.0, c=c.T, overwrite_c=True)
    assert np.shares_memory(done, c), "c is not float64 in C's order"


def inverse_of_positive(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a symmetric positive definite one [n, n], by Cholesky: half the work of any other's.

    Raises LinAlgError when it is not positive definite.
    """
    factor, failed = dpotrf(matrix.T, lower=False, clean=True)
    if not failed:
        found, failed = dpotri(factor, lower=False, overwrite_c=True)
    if failed:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    # Its other triangle is zero, and is filled in strips, as another matrix of this size takes longer to get.
    whole: NDArray[np.float64] = found.T
    for start in range(0, len(whole), 256):
        strip, stop = whole[start : start + 256], start + 256
        strip[:, stop:] = whole[stop:, start:stop].T
        strip[:, start:stop] += np.tril(strip[:, start:stop], -1).T
    return whole


def factor_of_inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper Cholesky factor [n, n] of the inverse of a symmetric positive definite matrix.

    It is the inverse of the lower factor of all in reverse, put back in order: the matrix itself is not
    inverted. Raises LinAlgError when it is not positive definite.
    """
    found, _ = dtrtri(cholesky(matrix[::-1, ::-1], lower=True), lower=True, overwrite_c=True)
    return np.asarray(found[::-1, ::-1])
