"""Pictures of no class are told from flowers: the bars of benchmarks/known.py, on test/."""

from __future__ import annotations

from pathlib import Path

from benchmarks.known import METHODS, leave_one_out, pooled_of_flowers, pooled_of_no_flowers
from train.network.novelty import RELATIVE


def test_auroc(flower_photos: Path) -> None:
    pooled, labels = pooled_of_flowers(flower_photos)
    no_flowers = pooled_of_no_flowers()

    def areas(method: str) -> tuple[float, float]:
        known = pooled["train"], labels["train"]
        return leave_one_out(METHODS[method], *known, pooled["test"], labels["test"], no_flowers)

    near, far = areas(f"{RELATIVE} of the relative one, square roots")
    plain, _ = areas("maximum probability")
    assert near >= 0.78 and far >= 0.95
    assert near > plain + 0.03
