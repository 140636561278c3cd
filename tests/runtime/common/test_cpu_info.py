"""The names of processors and boards, from Linux's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.common import cpu_info

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC
flags\t\t: fpu avx2 hypervisor avx512f avx512_vnni

processor\t: 1
model name\t: never looked at
"""
PI_5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""
PI_2_32_BIT = """processor\t: 0
model name\t: ARMv7 Processor rev 5 (v7l)
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm
CPU implementer\t: 0x41
CPU part\t: 0xc07
"""
UNNAMED = "Features : fp asimd asimddp i8mm\nCPU implementer : 0x41\nCPU part : 0xd4f\n"


@pytest.mark.parametrize(
    ("cpuinfo", "cpu"),
    [
        (X86, "AMD EPYC, avx2 avx512f avx512_vnni"),
        (PI_5, "Cortex-A76, asimddp"),
        (PI_2_32_BIT, "Cortex-A7"),
        (UNNAMED, "Arm part 0xd4f of implementer 0x41, asimddp i8mm"),
    ],
    ids=["x86", "pi-5", "pi-2", "unnamed"],
)
def test_the_processor_is_named(
    cpuinfo: str, cpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_info, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu_info.cpu_name()  # on systems without one
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert cpu_info.cpu_name() == cpu


def test_the_board_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_info, "BOARD_FILES", (tmp_path / "model", tmp_path / "product_name"))
    monkeypatch.setattr(cpu_info, "CPUINFO", tmp_path / "cpuinfo")
    assert cpu_info.board_name() == ""
    (tmp_path / "cpuinfo").write_text(X86)
    assert cpu_info.board_name() == "virtual machine"
    (tmp_path / "product_name").write_text("ThinkPad X1\n")
    assert cpu_info.board_name() == "ThinkPad X1"
    (tmp_path / "model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    assert cpu_info.board_name() == "Raspberry Pi 5 Model B Rev 1.0"
