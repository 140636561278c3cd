"""Which machine a figure was measured on, in one line."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from runtime.common.cpu_info import cpu

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "tflite-runtime", "onnxruntime", "numpy", "pillow")


def machine() -> str:
    """The processor, its cores, the vector instructions that int8 kernels use, and the packages' versions."""
    versions = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    parts = [
        f"{cpu()}, {os.cpu_count()} cores",
        f"{platform.system()}, Python {platform.python_version()}",
        *versions,
    ]
    return ", ".join(parts)
