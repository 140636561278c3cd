"""Prints the history of fine-tuning on made-up features, over the CPUs that stand for so many GPUs.

    python tests/spread.py GPUS

Run by tests in processes of their own, for a backend makes its devices once.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])


def main(gpus: str) -> None:
    count = int(gpus)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    if os.environ.get("KERAS_BACKEND") != "jax":
        import tensorflow

        (processor,) = tensorflow.config.list_physical_devices("CPU")
        logical = [tensorflow.config.LogicalDeviceConfiguration()] * count
        tensorflow.config.set_logical_device_configuration(processor, logical)
    from train import devices, finetune
    from train.backbone import read_weights
    from train.fit import fit
    from train.settings import Settings

    share = devices.join("00")
    devices.gpus = lambda: [f"cpu:{number}" for number in range(count)]
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
    start = fit(train, val, 2, settings, finetune.upper_blocks(weights, settings))
    # Heads begin at random numbers that each backend draws in its own way.
    chance = np.random.default_rng(0)
    for layer in start.head:
        layer.set_weights([chance.normal(0, 0.05, weight.shape) for weight in layer.get_weights()])
    fitted, _ = finetune.fine_tune(start, train, val, 2, weights, settings, share=share)
    print(json.dumps([dict(row) for row in fitted.history]))


def blobs(photos: int, seed: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """block4_pool features of two classes."""
    chance = np.random.default_rng(seed)
    labels = np.arange(photos, dtype=np.int32) % 2
    features = chance.gamma(0.3, 20.0, (photos, 14, 14, 512))
    for label in range(2):
        features[labels == label, :, :, label * 40 : label * 40 + 40] += 60.0
    return features.astype(np.float16), labels


if __name__ == "__main__":
    main(*sys.argv[1:])
