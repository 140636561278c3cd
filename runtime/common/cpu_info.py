"""Which machine this is, by what decides how fast an engine runs on it."""

import os
import platform
from contextlib import suppress
from pathlib import Path

# Vector instructions that int8 kernels are written for; virtual machines hide what a processor is called, but
# not these.
VECTORS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
# The cores of Raspberry Pis by their part number, which Linux gives without a name.
# https://github.com/util-linux/util-linux/blob/master/sys-utils/lscpu-arm.c
ARM_PARTS = {
    "0xb76": "ARM1176",
    "0xc07": "Cortex-A7",
    "0xd03": "Cortex-A53",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
}


CPUINFO = Path("/proc/cpuinfo")
BOARD = (Path("/proc/device-tree/model"), Path("/sys/class/dmi/id/product_name"))


def cpu() -> str:
    """The processor and those of VECTORS that it has, such as "AMD EPYC, avx2 avx512f avx512_vnni"."""
    fields = _cpuinfo()
    name = ARM_PARTS.get(fields.get("CPU part", "")) or fields.get("model name")
    if not name and "CPU part" in fields:
        name = f"Arm part {fields['CPU part']} of implementer {fields.get('CPU implementer', '?')}"
    flags = fields.get("flags", fields.get("Features", "")).split()
    vectors = " ".join(name for name in VECTORS if name in flags)
    name = name or os.environ.get("PROCESSOR_IDENTIFIER") or platform.machine()  # Windows; macOS
    return ", ".join(filter(None, [name, vectors]))


def board() -> str:
    """The board's or computer's own name, such as "Raspberry Pi 5 Model B Rev 1.0"; "" where it has none."""
    for path in BOARD:
        with suppress(OSError):
            if name := path.read_text(errors="replace").strip("\0\n "):
                return name
    return "virtual machine" if "hypervisor" in _cpuinfo().get("flags", "").split() else ""


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core; the whole file takes milliseconds on a machine of many."""
    fields: dict[str, str] = {}
    with suppress(OSError), CPUINFO.open("rb", buffering=0) as file:
        for line in file.read(4096).decode(errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields
