from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from runtime.common.errors import UserError
from tests.helpers import ROOT
from train.distributed import PROCESSES_VARIABLE, ProcessShard, init_distributed
from train.trainer import Batches


def history(gpus: int) -> list[dict[str, float]]:
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "distributed_training.py", str(gpus)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return rows


@pytest.mark.slow
def test_two_devices_give_the_losses_of_one() -> None:
    """CPU devices stand in for GPUs: Keras distributes a step in the same way."""
    one, two = history(1), history(2)
    assert len(one) == len(two) == 3 and one[-1]["loss"] < one[0]["loss"]
    for first, second in zip(one, two, strict=True):
        assert second == pytest.approx(first, rel=1e-4, abs=1e-5)


def test_the_batches_of_all_processes_together_hold_every_photo_once() -> None:
    features, labels = np.arange(22.0)[:, np.newaxis], np.zeros(22, np.int32)
    shards = [Batches(features, labels, 2, 9, shard=ProcessShard(process, 2, 4)) for process in range(2)]
    whole = []
    for step in range(len(shards[0])):
        parts = [shard[step][0].ravel().tolist() for shard in shards]
        assert len(parts[0]) == len(parts[1])
        assert (len(parts[0]) + len(parts[1])) % 4 == 0, "each device gets the same number"
        whole += [*parts[0], *parts[1]]
    assert sorted(whole) == list(range(20)), "every photo once, without the indivisible rest"
    assert [len(shard) for shard in shards] == [3, 3]


def test_several_processes_without_jax_raise_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert init_distributed() == ProcessShard()
    monkeypatch.setenv(PROCESSES_VARIABLE, "2")
    with pytest.raises(UserError, match="KERAS_BACKEND=jax"):
        init_distributed()
