"""The processor and the board of this machine, which decide how fast an engine runs."""

import os
import platform
from contextlib import suppress
from pathlib import Path

# Vector instructions that int8 kernels use. Virtual machines hide the processor's name, but not these.
VECTOR_EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
VNNI = frozenset({"avx512_vnni", "avx_vnni"})  # instructions of x86 for sums of int8 products
# Raspberry Pi cores by part number, which Linux reports without a name.
# https://github.com/util-linux/util-linux/blob/master/sys-utils/lscpu-arm.c
ARM_PARTS = {
    "0xb76": "ARM1176",
    "0xc07": "Cortex-A7",
    "0xd03": "Cortex-A53",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
}

CPUINFO = Path("/proc/cpuinfo")
CPUINFO_BYTES = 4096  # holds the first core; the whole file takes milliseconds on a machine with many cores
BOARD_FILES = (Path("/proc/device-tree/model"), Path("/sys/class/dmi/id/product_name"))


def cpu_name() -> str:
    """Returns the processor and its vector extensions, such as "AMD EPYC, avx2 avx512f avx512_vnni"."""
    fields = _read_cpuinfo()
    name = ARM_PARTS.get(fields.get("CPU part", "")) or fields.get("model name")
    if not name and "CPU part" in fields:
        name = f"Arm part {fields['CPU part']} of implementer {fields.get('CPU implementer', '?')}"
    flags = fields.get("flags", fields.get("Features", "")).split()
    extensions = " ".join(name for name in VECTOR_EXTENSIONS if name in flags)
    name = name or os.environ.get("PROCESSOR_IDENTIFIER") or platform.machine()  # Windows; macOS
    return ", ".join(filter(None, [name, extensions]))


def is_x86_without_vnni() -> bool:
    """Whether this is an x86 processor without VNNI. False where the system does not describe it."""
    flags = _read_cpuinfo().get("flags", "").split()  # Arm has "Features" instead
    return bool(flags) and VNNI.isdisjoint(flags)


def board_name() -> str:
    """Returns the board's or computer's name, such as "Raspberry Pi 5 Model B Rev 1.0", or ""."""
    for path in BOARD_FILES:
        with suppress(OSError):
            if name := path.read_text(errors="replace").strip("\0\n "):
                return name
    return "virtual machine" if "hypervisor" in _read_cpuinfo().get("flags", "").split() else ""


def _read_cpuinfo() -> dict[str, str]:
    """Returns Linux's description of the first core; empty on other systems."""
    fields: dict[str, str] = {}
    with suppress(OSError), CPUINFO.open("rb", buffering=0) as file:
        for line in file.read(CPUINFO_BYTES).decode(errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields
