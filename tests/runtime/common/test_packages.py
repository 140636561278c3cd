"""The next step for a missing package fits how the program was installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runtime.common import packages
from runtime.common.packages import SERVICE_EXTRAS, SERVICE_VARIABLE, install_command
from tests.helpers import ROOT


def test_the_service_names_its_installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVICE_VARIABLE, raising=False)
    assert install_command("mqtt") == "in the clone, run pip install '.[mqtt]'"
    monkeypatch.setenv(SERVICE_VARIABLE, "1")
    monkeypatch.setattr(packages, "EXTRAS_FILE", tmp_path / "extras")
    assert install_command("mqtt").endswith("install.sh --extras litert,camera,web,mqtt")
    assert install_command("web").endswith("install.sh --extras litert,camera,web")
    (tmp_path / "extras").write_text("litert,web,heic\n")
    assert install_command("mqtt").endswith("install.sh --extras litert,web,heic,mqtt")
    assert "does not support openvino" in install_command("openvino")


def test_the_names_are_those_of_the_installed_service() -> None:
    assert f"{SERVICE_VARIABLE}=1" in (ROOT / "deploy" / "vgg-edge.service").read_text()
    script = (ROOT / "deploy" / "install.sh").read_text()
    assert f"{{extras:-{SERVICE_EXTRAS}}}" in script and f"cat {packages.EXTRAS_FILE} " in script
    (known,) = re.findall(r"^ +(litert \|.*)\) ;;$", script, re.MULTILINE)
    assert set(known.split(" | ")) == packages.ALL_SERVICE_EXTRAS
