"""/status for a model whose index holds unusual values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from runtime.model_file.files import INDEX_NAME
from tests.serving import serve_in_thread


def test_status_survives_an_index_with_unusual_engines_numbers_and_file_names(
    knowing: Path, tmp_path: Path
) -> None:
    """Engine names that are empty or not UTF-8, numbers beyond any float, a file name with a surrogate."""
    folder = shutil.copytree(knowing, tmp_path / "odd")
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    parity = {"": {"n": 1}, "litert \ud800": {"n": 7, "top1": 10**400, "max_dp": True, "mean_dp": 0.5}}
    for file in index["files"]:
        file["metrics"]["parity"] = parity
    (folder / INDEX_NAME).write_text(json.dumps(index))
    (model,) = folder.glob("*.tflite")
    model = model.rename(folder / "caf\udce9.tflite")
    with serve_in_thread(model) as service:
        card = service.status()["model"]
        assert service.get_status("/metrics") == 200
    assert card["file"] == model.name
    assert card["parity"] == {"engine": "litert \ud800", "n": 7, "mean_dp": 0.5}
