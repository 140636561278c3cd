"""Describes the machine that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from runtime.common.cpu_info import cpu_name

PACKAGES = (
    "tensorflow",
    "jax",
    "keras",
    "ai-edge-litert",
    "tflite-runtime",
    "onnxruntime",
    "numpy",
    "pillow",
)


def describe_machine() -> str:
    """One line: the processor with its vector instructions, its cores, and the versions of the packages."""
    versions = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    parts = [
        f"{cpu_name()}, {os.cpu_count()} cores",
        f"{platform.system()}, Python {platform.python_version()}",
        *versions,
    ]
    return ", ".join(parts)
