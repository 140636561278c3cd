"""A result that passes every gate, for tests to change."""

from __future__ import annotations

from export.parity.result import ParityResult

RESULT = ParityResult(
    format="tflite",
    precision="int8",
    engine="litert 2.3.0",
    n=500,
    bytes=1_000_000,
    top1=0.9,
    reference_top1=0.9,
    disagreements=0,
    mean_dp=0.0,
    p99_dp=0.0,
    max_dp=0.0,
    ms=1.0,
)
