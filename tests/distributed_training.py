"""Fine-tune on synthetic features with CPU devices in place of GPUs, and print the history as JSON.

    python tests/distributed_training.py DEVICES [EPOCH]

With EPOCH, the second of two processes kills itself at the end of that epoch. Tests run this file in separate
processes, because a backend creates its devices only once.
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


def main(devices: str, killed_in_epoch: str = "") -> None:
    count = int(devices)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    if os.environ.get("KERAS_BACKEND") != "jax":
        import tensorflow

        (processor,) = tensorflow.config.list_physical_devices("CPU")
        logical = [tensorflow.config.LogicalDeviceConfiguration()] * count
        tensorflow.config.set_logical_device_configuration(processor, logical)
    from tests.backbone import small_backbone
    from train import distributed, finetune
    from train.settings import Settings
    from train.train_head import train_head

    shard = distributed.init_distributed()
    distributed.list_gpus = lambda: [f"cpu:{number}" for number in range(count)]
    finetune.compute_dtype = lambda: "float32"  # bfloat16 would hide small differences
    passes = {"fine_tune": "block5", "fine_tune_views": 1, "fine_tune_epochs": 3, "fine_tune_batch": 4}
    settings = Settings(epochs=2, views=1, batch=5, **passes)
    weights = small_backbone()
    channels = weights.tensors["block5_conv1/kernel"].shape[2]
    train, val = synthetic_features(10, channels, 0), synthetic_features(6, channels, 1)
    start = train_head(train, val, 2, settings, finetune.upper_blocks(weights, settings))
    for layer in start.head:  # as if another machine had trained a slightly different head
        layer.set_weights([weight + 1e-6 * shard.process for weight in layer.get_weights()])

    def kill_second_process(stage: str, row: Mapping[str, float]) -> None:
        if shard.process and str(int(row["epoch"])) == killed_in_epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    fitted, _ = finetune.fine_tune(
        start, train, val, 2, weights, settings, on_epoch=kill_second_process, shard=shard
    )
    distributed.shutdown(shard)
    if shard.process:
        time.sleep(2)  # until process 0, which serves the others, has ended
    print(json.dumps([dict(row) for row in fitted.history]))


def synthetic_features(photos: int, channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """block4_pool features of two classes, float16 [photos, 4, 4, channels], and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(photos, dtype=np.int32) % 2
    features = rng.gamma(0.3, 20.0, (photos, 4, 4, channels))
    features[..., :16] += 60.0 * np.eye(2).repeat(8, axis=1)[labels][:, None, None]  # 8 channels per class
    return features.astype(np.float16), labels


if __name__ == "__main__":
    main(*sys.argv[1:])
