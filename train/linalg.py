"""Products and inverses of large matrices with SciPy's BLAS and LAPACK.

numpy 1.26, the newest version that tflite-runtime works with, contains an OpenBLAS of 2023, which uses slow
kernels on newer processors. Small inverses use SciPy too, because the threads of the two libraries wait for
each other.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, get_blas_funcs
from scipy.linalg.lapack import dpotrf, dpotri, dtrtri


def matmul(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """The product of a [n, m] and b [m, k], both float32 or float64, as [n, k] in C order."""
    gemm = get_blas_funcs("gemm", (a, b))
    # BLAS uses column order, so the transposed product needs no copy of contiguous matrices.
    (left, transpose_left), (right, transpose_right) = (
        (matrix.T, 0) if matrix.flags.c_contiguous else (matrix, 1) for matrix in (b, a)
    )
    return np.asarray(gemm(1.0, left, right, trans_a=transpose_left, trans_b=transpose_right).T)


def product_with_transposed(a: NDArray[Any]) -> NDArray[Any]:
    """The upper triangle of aᵀ a [m, m] for a [n, m] in C order, float32 or float64: half the work of a
    product. The other triangle is 0.
    """
    syrk = get_blas_funcs("syrk", (a,))
    return np.asarray(syrk(1.0, a.T))  # BLAS uses column order, in which aᵀ needs no copy


def subtract_product(c: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    """Subtract the product of a [n, m] and b [m, k] from c [n, k] in place; all float64 in C order."""
    gemm = get_blas_funcs("gemm", (a, b))
    result = gemm(-1.0, b.T, a.T, beta=1.0, c=c.T, overwrite_c=True)
    assert np.shares_memory(result, c), "c is not float64 in C order"


def inverse_of_positive(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of a symmetric positive definite matrix [n, n], by Cholesky: half the work of LU.

    Raises LinAlgError when it is not positive definite.
    """
    factor, failed = dpotrf(matrix.T, lower=False, clean=True)
    if not failed:
        triangle, failed = dpotri(factor, lower=False, overwrite_c=True)
    if failed:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    # LAPACK leaves the other triangle at zero. Strips fill it, because a second matrix of this size is slow.
    inverse: NDArray[np.float64] = triangle.T
    for start in range(0, len(inverse), 256):
        strip, stop = inverse[start : start + 256], start + 256
        strip[:, stop:] = inverse[stop:, start:stop].T
        strip[:, start:stop] += np.tril(strip[:, start:stop], -1).T
    return inverse


def factor_of_inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper Cholesky factor [n, n] of the inverse of a symmetric positive definite matrix.

    It is the inverse of the lower Cholesky factor of the matrix with rows and columns reversed, reversed
    again, so the matrix itself is not inverted. Only the upper triangle of the matrix is read. Raises
    LinAlgError when it is not positive definite.
    """
    inverse, _ = dtrtri(cholesky(matrix[::-1, ::-1], lower=True), lower=True, overwrite_c=True)
    return np.asarray(inverse[::-1, ::-1])
