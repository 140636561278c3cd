"""In the service's place: both engines classify, and what the unit forbids is tried. Writes answers.json."""

import ctypes
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from runtime import Classifier
from runtime.server.systemd import notify


def tried(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "allowed"


def new_user_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")


answers = {}
for engine in sys.argv[2:]:
    prediction = Classifier(engine=engine)(sys.argv[1])
    answers[engine] = {"label": prediction.label, "probability": prediction.probability}
tries = {
    "write to /etc": tried(lambda: Path("/etc/vgg-edge.test").touch()),
    "write to /opt": tried(lambda: Path("/opt/vgg-edge/test").touch()),
    "write to the state": tried(lambda: Path("/var/lib/vgg-edge/test").touch()),
    "write to the cache": tried(lambda: Path("/var/cache/vgg-edge/test").touch()),
    "read a home": tried(lambda: list(Path("/root").iterdir())),
    "read the token": tried(lambda: Path("/etc/vgg-edge/token").read_bytes()),
    "read its copy": tried(lambda: Path(os.environ["CREDENTIALS_DIRECTORY"], "token").read_bytes()),
    "write and execute": tried(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
    "packets": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)),
    "internet": tried(lambda: socket.socket(socket.AF_INET)),
    "namespaces": tried(new_user_namespace),
    "null": tried(lambda: Path("/dev/null").write_bytes(b"x")),
    **{name: tried(lambda name=name: os.open(name, os.O_RDWR)) for name in
       ("/dev/video0", "/dev/media0", "/dev/dma_heap/system", "/dev/another")},
}  # fmt: skip
Path("answers.json").write_text(json.dumps({"answers": answers, "tries": tries, "user": os.getuid()}))
notify("READY=1")
