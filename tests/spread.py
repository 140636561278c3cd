"""Prints the history of fine-tuning on made-up features, over the CPUs that stand for so many GPUs.

    python tests/spread.py GPUS [EPOCH]

With EPOCH, the second of two processes is killed at its end.

Run by tests in processes of their own, for a backend makes its devices once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])


def main(gpus: str, last: str = "") -> None:
    count = int(gpus)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    if os.environ.get("KERAS_BACKEND") != "jax":
        import tensorflow

        (processor,) = tensorflow.config.list_physical_devices("CPU")
        logical = [tensorflow.config.LogicalDeviceConfiguration()] * count
        tensorflow.config.set_logical_device_configuration(processor, logical)
    from train import distributed as devices
    from train import finetune
    from train.network.vgg import read_weights
    from train.settings import Settings
    from train.train_head import train_head

    share = devices.init_distributed()
    devices.list_gpus = lambda: [f"cpu:{number}" for number in range(count)]
    finetune.compute_dtype = lambda: "float32"  # bfloat16 would hide small differences
    settings = Settings(
        epochs=2,
        views=1,
        batch=5,
        fine_tune="block5",
        fine_tune_views=1,
        fine_tune_epochs=3,
        fine_tune_batch=4,
    )
    train, val = blobs(10, 0), blobs(6, 1)
    weights = read_weights()
    start = train_head(train, val, 2, settings, finetune.upper_blocks(weights, settings))
    for layer in start.head:  # on another machine a head comes out a little different
        layer.set_weights([weight + 1e-6 * share.process for weight in layer.get_weights()])

    def tell(stage: str, row: Mapping[str, float]) -> None:
        if share.process and str(int(row["epoch"])) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    fitted, _ = finetune.fine_tune(start, train, val, 2, weights, settings, on_epoch=tell, shard=share)
    devices.shutdown(share)
    if share.process:
        time.sleep(2)  # the first one, which serves the others, is gone by then
    print(json.dumps([dict(row) for row in fitted.history]))


def blobs(photos: int, seed: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """block4_pool features of two classes, of small photos."""
    chance = np.random.default_rng(seed)
    labels = np.arange(photos, dtype=np.int32) % 2
    features = chance.gamma(0.3, 20.0, (photos, 4, 4, 512))
    for label in range(2):
        features[labels == label, :, :, label * 40 : label * 40 + 40] += 60.0
    return features.astype(np.float16), labels


if __name__ == "__main__":
    main(*sys.argv[1:])
