"""The machine that a benchmark ran on, and the memory and processor time of its processes."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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


def process_mb(process_id: int, field: str) -> float:
    """The memory of a process in MB: `field` of /proc/PID/status, such as VmRSS or VmHWM (the peak).

    0 for a process that has ended. Raises OSError for one that does not exist.
    """
    found = re.search(rf"{field}:\s*(\d+)", Path(f"/proc/{process_id}/status").read_text())
    return kilobytes_to_mb(int(found[1])) if found else 0.0


def process_cpu_seconds(process_id: int) -> float:
    """The processor time that a process used so far. Raises OSError for one that does not exist."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kilobytes_to_mb(kilobytes: int) -> float:
    """MB of 10⁶ bytes. A kilobyte of the kernel, as in /proc and ru_maxrss, has 1024 bytes."""
    return kilobytes * 1024 / 1e6
