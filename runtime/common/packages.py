"""Where a missing package is installed: in a clone, or by the installer of the service."""

import os
from contextlib import suppress
from pathlib import Path

SERVICE_VARIABLE = "VGG_EDGE_SERVICE"  # set by deploy/vgg-edge.service
SERVICE_EXTRAS = "litert,camera,web"  # what deploy/install.sh installs without --extras
ALL_SERVICE_EXTRAS = {"litert", "onnx", "camera", "mqtt", "web", "heic", "verify"}  # that it knows
EXTRAS_FILE = Path("/etc/vgg-edge/extras")  # those of its last run


def picamera2_command() -> str:
    """Returns how to install picamera2, which comes from Debian and not from pip."""
    if os.environ.get(SERVICE_VARIABLE):
        return "in the clone, run sudo deploy/install.sh --picamera2"
    return (
        "run `sudo apt install python3-picamera2` and create the virtual environment with "
        "`python3 -m venv --system-site-packages`"
    )


def install_command(extra: str) -> str:
    """Returns how to install an extra of pyproject.toml: "in the clone, run pip install '.[mqtt]'"."""
    if not os.environ.get(SERVICE_VARIABLE):
        return f"in the clone, run pip install '.[{extra}]'"
    if extra not in ALL_SERVICE_EXTRAS:
        return f"the installed service does not support {extra}: choose another"
    installed = SERVICE_EXTRAS
    with suppress(OSError):
        installed = EXTRAS_FILE.read_text().strip() or installed
    extras = dict.fromkeys([*installed.split(","), extra])
    return f"in the clone, run sudo deploy/install.sh --extras {','.join(extras)}"
