"""SciPy's BLAS and LAPACK give numpy's results, in every memory order."""

from __future__ import annotations

import numpy as np
import pytest

from train.linalg import (
    factor_of_inverse,
    inverse_of_positive,
    matmul,
    product_with_transposed,
    subtract_product,
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fortran_order", [(False, False), (True, False), (False, True), (True, True)])
def test_a_product_equals_numpys(dtype: str, fortran_order: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)).astype(dtype), rng.normal(size=(5, 3)).astype(dtype)
    left, right = (
        np.asfortranarray(matrix) if fortran else matrix
        for matrix, fortran in zip((a, b), fortran_order, strict=True)
    )
    product = matmul(left, right)
    assert product.dtype == dtype and product.shape == (7, 3)
    np.testing.assert_allclose(product, a @ b, rtol=1e-5)
    np.testing.assert_allclose(matmul(a.T, a), a.T @ a, rtol=1e-5)
    np.testing.assert_allclose(matmul(a[::2], b[:, ::2]), a[::2] @ b[:, ::2], rtol=1e-5)


def test_a_product_is_subtracted_in_place() -> None:
    rng = np.random.default_rng(1)
    a, b, c = rng.normal(size=(7, 5)), rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
    expected = c - a @ b
    subtract_product(c, a, b)
    np.testing.assert_allclose(c, expected, rtol=1e-9)
    with pytest.raises(AssertionError, match="C order"):
        subtract_product(np.asfortranarray(c), a, b)


def test_an_inverse_times_its_matrix_is_the_identity() -> None:
    factor = np.random.default_rng(2).normal(size=(300, 300))
    matrix = factor @ factor.T + np.eye(300)
    before = matrix.copy()
    inverse = inverse_of_positive(matrix)
    assert inverse.flags.c_contiguous and np.array_equal(matrix, before)
    np.testing.assert_allclose(inverse @ matrix, np.eye(300), atol=1e-9)
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        inverse_of_positive(-matrix)


def test_the_factor_of_an_inverse_equals_its_cholesky_factor() -> None:
    factor = np.random.default_rng(3).normal(size=(40, 40))
    matrix = factor @ factor.T + np.eye(40)
    before = matrix.copy()
    inverse_factor = factor_of_inverse(matrix)
    assert np.array_equal(matrix, before)
    np.testing.assert_allclose(inverse_factor, np.linalg.cholesky(np.linalg.inv(matrix)).T, atol=1e-9)
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        factor_of_inverse(-matrix)


def test_the_upper_triangle_of_a_product_is_enough_for_the_factor_of_the_inverse() -> None:
    a = np.random.default_rng(4).normal(size=(40, 9)).astype(np.float32)
    triangle = product_with_transposed(a)
    assert triangle.dtype == np.float32
    np.testing.assert_allclose(triangle, np.triu(a.T @ a), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        factor_of_inverse(triangle.astype(np.float64)),
        factor_of_inverse((a.T @ a).astype(np.float64)),
        rtol=1e-4,
    )
