"""The queue's memory, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SIDE = 2500  # pixels
ESTIMATED_BYTES = 16 * SIDE**2  # of decoding one RGBA PNG

# Decodes the picture 6 times in the queue's 4 threads; prints by how many kB the peak grew.
CHILD = """
import re, sys
from runtime.preprocess import limits, picture
from runtime.server import inference_queue
peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])
data, memory = open(sys.argv[1], 'rb').read(), int(sys.argv[2])
limits.total_memory = lambda: memory
inference_queue.default_threads = lambda: 4
pool, before = inference_queue.InferenceQueue(None)._pool, peak()
assert all(pixels.shape for pixels in pool.map(picture.read_picture, [data] * 6))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_pictures_that_are_decoded_at_once_share_the_memory_limit(tmp_path: Path) -> None:
    """Each of four pictures fits into half of the memory; together they must not take more than that."""
    Image.new("RGBA", (SIDE, SIDE)).save(tmp_path / "large", "PNG")

    def growth_kb(memory: int) -> int:
        command = [sys.executable, "-c", CHILD, str(tmp_path / "large"), str(memory)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert growth_kb(2 * ESTIMATED_BYTES) < ESTIMATED_BYTES / 1000 < growth_kb(20 * ESTIMATED_BYTES)
