"""One service for the tests of a module, in a thread of the test process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.serving import OWN_VARIABLES, TOKEN, Client, serve_in_thread

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


@pytest.fixture(autouse=True, scope="session")
def no_service_variables() -> Iterator[None]:
    """The developer's own VGG_EDGE_TOKEN must not change the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OWN_VARIABLES:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def service(knowing: Path) -> Iterator[Client]:
    """Four slots, uploads of 1 MB at most."""
    with serve_in_thread(knowing, queue_capacity=4, max_upload_bytes=1_000_000) as client:
        yield client


@pytest.fixture(scope="module")
def private(knowing: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A service that requires TOKEN."""
    token_file = tmp_path_factory.mktemp("token") / "token"
    token_file.write_text(f"{TOKEN}\n")
    with serve_in_thread(knowing, host="0.0.0.0", token_file=str(token_file)) as client:
        yield client


@pytest.fixture
def scene_service(model: Path) -> Iterator[Client]:
    """A service of its own, with the model that a test adapts or teaches."""
    with serve_in_thread(model, queue_capacity=4, max_upload_bytes=1_000_000) as client:
        yield client


@pytest.fixture(
    scope="module",
    params=["DESKTOP", pytest.param("PHONE", marks=pytest.mark.slow)],
    ids=["desktop", "phone"],
)
def chrome(request: pytest.FixtureRequest) -> Iterator[Chrome]:
    """A browser with a window of this size; skips the tests where there is none."""
    from tests.runtime.server import browser

    with browser.browser(getattr(browser, request.param)) as started:
        yield started


@pytest.fixture(scope="session")
def red_jpeg(photos: Path) -> bytes:
    return (photos / "red.jpg").read_bytes()
