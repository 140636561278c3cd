"""Products by SciPy's BLAS, whatever lies in memory in which order."""

from __future__ import annotations

import numpy as np
import pytest

from train.matmul import matmul


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_it_is_numpys(dtype: str, turned: tuple[bool, bool]) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(7, 5)).astype(dtype), random.normal(size=(5, 3)).astype(dtype)
    left, right = (np.asfortranarray(m) if turn else m for m, turn in zip((a, b), turned, strict=True))
    product = matmul(left, right)
    assert product.dtype == dtype and product.shape == (7, 3)
    np.testing.assert_allclose(product, a @ b, rtol=1e-5)
    np.testing.assert_allclose(matmul(a.T, a), a.T @ a, rtol=1e-5)
    np.testing.assert_allclose(matmul(a[::2], b[:, ::2]), a[::2] @ b[:, ::2], rtol=1e-5)
