"""Which machine a figure was measured on, in one line."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "tflite-runtime", "onnxruntime", "numpy", "pillow")


def machine() -> str:
    """The processor, its cores, the vector instructions that int8 kernels use, and the packages' versions."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", "")).split()
    vectors = [
        flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp", "i8mm") if flag in flags
    ]
    versions = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    parts = [
        f"{fields.get('model name', platform.processor() or platform.machine())}, {os.cpu_count()} cores",
        " ".join(vectors),
        f"{platform.system()}, Python {platform.python_version()}",
        *versions,
    ]
    return ", ".join(filter(None, parts))
