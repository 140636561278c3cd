"""Runs instead of the service, under the unit's restrictions: classifies, and tries forbidden actions.

Writes results.json to the state directory. Arguments: a photo, then the engines.
"""

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

DEVICES = ("/dev/video0", "/dev/media0", "/dev/dma_heap/system", "/dev/another")
NEW_USER_NAMESPACE = 0x10000000  # CLONE_NEWUSER of sched.h


def result_of(action: Callable[[], object]) -> str:
    """ "allowed", or the reason why the action failed."""
    try:
        action()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "allowed"


def create_user_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER_NAMESPACE):
        raise OSError(ctypes.get_errno(), "unshare")


def main(photo: str, *engines: str) -> None:
    predictions = {}
    for engine in engines:
        prediction = Classifier(engine=engine)(photo)
        predictions[engine] = {"label": prediction.label, "probability": prediction.probability}
    credentials, state = os.environ["CREDENTIALS_DIRECTORY"], os.environ["STATE_DIRECTORY"]
    actions: dict[str, Callable[[], object]] = {
        "write to /etc": lambda: Path("/etc/vgg-edge.test").touch(),
        "write to /opt": lambda: Path("/opt/vgg-edge/test").touch(),
        "write to the state": lambda: Path(state, "test").touch(),
        "write to the models": lambda: Path("/var/lib/vgg-edge/models/test.onnx").touch(),
        "replace the models": lambda: Path("/var/lib/vgg-edge/models").rename("/var/lib/vgg-edge/old"),
        "read the settings": lambda: Path("/etc/vgg-edge/serve.conf").read_bytes(),
        "write to the cache": lambda: Path("/var/cache/vgg-edge/test").touch(),
        "read a home": lambda: list(Path("/root").iterdir()),
        "read the token": lambda: Path("/etc/vgg-edge/token").read_bytes(),
        "read the token's copy": lambda: Path(credentials, "token").read_bytes(),
        "write and execute": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
        "raw packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM),
        "internet": lambda: socket.socket(socket.AF_INET),
        "user namespaces": create_user_namespace,
        "lower the priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 1),
        "raise the priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 0),
        "lower the priority of root's process": lambda: os.setpriority(os.PRIO_PROCESS, 1, 1),
        "change the scheduler": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        "null": lambda: Path("/dev/null").write_bytes(b"x"),
        **{name: lambda name=name: os.open(name, os.O_RDWR) for name in DEVICES},
    }
    results = {name: result_of(action) for name, action in actions.items()}
    text = json.dumps({"predictions": predictions, "actions": results, "user": os.getuid()})
    Path(state, "results.json").write_text(text)
    notify("READY=1")


main(*sys.argv[1:])
