"""The service's memory, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux tells it")
def test_pictures_decoded_at_once_share_the_memory(tmp_path: Path) -> None:
    """Of four at once, each of which may take half of the memory, the whole is to take no more than that."""
    side = 2500
    reckoned = 16 * side**2  # bytes, of a PNG
    Image.new("RGBA", (side, side)).save(tmp_path / "large", "PNG")
    code = (
        "import re, sys\n"
        "from runtime.preprocess import limits, picture\n"
        "from runtime.server import inference_queue as service\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "data, memory = open(sys.argv[1], 'rb').read(), int(sys.argv[2])\n"
        "limits.total_memory = lambda: memory\n"
        "service.default_threads = lambda: 4\n"
        "pool, before = service.InferenceQueue(None).pool, peak()\n"
        "assert all(pixels.shape for pixels in pool.map(picture.read_picture, [data] * 8))\n"
        "print(peak() - before)"
    )

    def kilobytes(memory: int) -> int:
        run = [sys.executable, "-c", code, str(tmp_path / "large"), str(memory)]
        return int(subprocess.run(run, capture_output=True, check=True, text=True).stdout)

    assert kilobytes(2 * reckoned) < reckoned / 1000 < kilobytes(20 * reckoned)
