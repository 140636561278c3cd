"""Where a missing package is installed: in a clone, or by the installer of the service."""

import os

SERVICE_VARIABLE = "VGG_EDGE_SERVICE"  # set by deploy/vgg-edge.service
SERVICE_EXTRAS = "litert,camera,web"  # what deploy/install.sh installs without --extras


def install_command(extra: str) -> str:
    """Returns how to install an extra of pyproject.toml: "in the clone, run pip install '.[mqtt]'"."""
    if not os.environ.get(SERVICE_VARIABLE):
        return f"in the clone, run pip install '.[{extra}]'"
    extras = SERVICE_EXTRAS if extra in SERVICE_EXTRAS.split(",") else f"{SERVICE_EXTRAS},{extra}"
    return f"in the clone, run sudo deploy/install.sh --extras {extras}"
