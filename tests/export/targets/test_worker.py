"""The search for the smallest arena, and codes as real numbers."""

from __future__ import annotations

import numpy as np
import pytest

from export.targets.worker import _real, _smallest_arena


@pytest.mark.parametrize("needed", [1, 5000, 65536, 65537, 3_000_000])
def test_the_smallest_arena_is_found(needed: int) -> None:
    def load(size: int) -> None:
        if size < needed:
            raise RuntimeError("too small")

    found = _smallest_arena(load)
    assert needed <= found < needed + 1024 and found % 1024 == 0


def test_a_file_that_never_loads_ends_with_its_error() -> None:
    def load(size: int) -> None:
        raise RuntimeError("operator 3 is missing")

    with pytest.raises(RuntimeError, match="operator 3"):
        _smallest_arena(load)


def test_codes_become_real_numbers() -> None:
    details = {"quantization_parameters": {"scales": [0.5], "zero_points": [-3]}}
    assert _real(np.array([-3, 1], np.int8), details).tolist() == [0.0, 2.0]
    assert _real(np.array([0.25], np.float32), details).tolist() == [0.25]
