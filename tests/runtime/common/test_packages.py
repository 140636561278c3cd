"""The next step for a missing package fits how the program was installed."""

from __future__ import annotations

import pytest

from runtime.common.packages import SERVICE_EXTRAS, SERVICE_VARIABLE, install_command
from tests.helpers import ROOT


def test_the_service_names_its_installer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVICE_VARIABLE, raising=False)
    assert install_command("mqtt") == "in the clone, run pip install '.[mqtt]'"
    monkeypatch.setenv(SERVICE_VARIABLE, "1")
    assert install_command("mqtt").endswith("install.sh --extras litert,camera,web,mqtt")
    assert install_command("web").endswith("install.sh --extras litert,camera,web")


def test_the_names_are_those_of_the_installed_service() -> None:
    assert f"{SERVICE_VARIABLE}=1" in (ROOT / "deploy" / "vgg-edge.service").read_text()
    assert f"{{extras:-{SERVICE_EXTRAS}}}" in (ROOT / "deploy" / "install.sh").read_text()
