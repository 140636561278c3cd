from __future__ import annotations

from pathlib import Path

import pytest

from train import cache
from train.cache import CacheError, cache_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "vgg-edge"


def test_it_is_told_and_cleared(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache_folder("features") / "a").mkdir()
    (cache_folder("features") / "a" / "one.npy").write_bytes(bytes(2_000_000))
    (cache_folder("photos") / "two.tgz").write_bytes(bytes(1_000_000))
    assert cache.main([]) == 0
    printed = capsys.readouterr().out
    assert "2.0 MB        1 files  features/a" in printed
    assert "1.0 MB        1 files  photos" in printed
    assert f"3.0 MB  in {home}" in printed
    assert cache.main(["--clear"]) == 0
    assert not home.exists()
    assert cache.main(["--clear"]) == 0, "nothing is there to clear"


def test_a_folder_that_cannot_be_made_is_told(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(CacheError, match="--cache or XDG_CACHE_HOME"):
        cache_folder("features")
