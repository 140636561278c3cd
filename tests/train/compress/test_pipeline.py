from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runtime.common.errors import UserError
from tests.backbone import WIDTHS
from tests.conftest import QUICK, QUICK_AT_ONCE
from tests.train.compress.test_allocation import EVEN
from train.compress import pipeline as compress
from train.compress.allocation import macs
from train.compress.pipeline import Compression, PruningCosts, cheapest, read, read_board
from train.data.dataset import PhotosError, find_photos
from train.data.synthetic import draw_flowers
from train.network.vgg import CONVOLUTIONS
from train.run import UNCOMPRESSED_CSV, RunError, open_run


def test_it_is_a_run_of_the_same_kind_for_fewer_multiplications(
    compressed_run: Path, synthetic_run: Path
) -> None:
    run, whole = open_run(compressed_run), open_run(synthetic_run)
    assert run.dataset.photos == whole.dataset.photos and run.classes == whole.classes
    done = run.compressed
    assert done["from"] == whole.name and done["size"] == done["of_size"] == 64
    assert done["macs"] == macs(done["widths"], 64) <= done["of_macs"] / 4
    assert done["of_macs"] == macs(WIDTHS, 64)
    model = run.load_model()
    assert model.inputs[0].shape == (None, 64, 64, 3) and model.inputs[0].dtype == "uint8"
    widths = {name: model.get_layer(name).filters for name in CONVOLUTIONS}
    assert widths == done["widths"] and widths["block5_conv1"] < WIDTHS["block5_conv1"]
    assert not compressed_run.with_name(f".{compressed_run.name}.resume").exists()
    stages = {row["stage"] for row in csv.DictReader((compressed_run / "history.csv").open())}
    assert stages == {"head", "distill"}
    report = (compressed_run / "report.html").read_text()
    assert f"compressed from <bdi>{whole.name}</bdi>" in report and "was stopped after" not in report


def test_it_knows_what_the_uncompressed_model_says(compressed_run: Path, synthetic_run: Path) -> None:
    run, whole = open_run(compressed_run), open_run(synthetic_run)
    said = run.uncompressed_labels()
    assert whole.uncompressed_labels() == {}
    photos = [*run.dataset.split("val"), *run.dataset.split("test")]
    assert sorted(said) == sorted(photo.path for photo in photos)
    for split in ("val", "test"):
        right = [said[photo.path] == photo.label for photo in run.dataset.split(split)]
        assert np.mean(right) == pytest.approx(whole.metrics[split]["top1"])
        assert run.compressed["uncompressed_top1"][split] == pytest.approx(np.mean(right))
    broken = run.path.parent / "broken"
    shutil.copytree(run.path, broken)
    (broken / UNCOMPRESSED_CSV).unlink()
    with pytest.raises(RunError, match=r"uncompressed\.csv: No such file.*; compress it again"):
        open_run(broken).uncompressed_labels()


def test_one_that_is_killed_goes_on_and_ends_the_same(
    compressed_run: Path, synthetic_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / compressed_run.name
    kept = out.with_name(f".{out.name}.resume")
    kept.mkdir()
    # What takes longest is taken from the undisturbed one: the plan.
    how = Compression(photos=12, views=2, epochs=2, reduce=4.0)
    (kept / "fingerprint").write_text(compress.fingerprint_of(open_run(synthetic_run), how))
    plan = {"size": 64, "widths": open_run(compressed_run).compressed["widths"]}
    (kept / "plan.json").write_text(json.dumps(plan))
    quick = "import sys; from train.compress import pipeline as compress, pruning; pruning.AT_ONCE = "
    quick += f"{QUICK_AT_ONCE}; sys.exit(compress.main())"
    command = [sys.executable, "-c", quick, str(synthetic_run), "--out", str(out), "--resume", *QUICK]
    for sign in ("train.pictures.npy", "reconstructed.safetensors", "distill.npz"):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not (kept / sign).exists():
                assert process.poll() is None, f"it ended before {sign} was there"
                time.sleep(0.02)
            process.kill()
        assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sensitivity" not in done.stderr and "reconstruct:" not in done.stderr
    found, expected = open_run(out), open_run(compressed_run)
    assert found.metrics == expected.metrics
    for one, other in zip(found.load_model().get_weights(), expected.load_model().get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_compressed_already_is_refused(
    compressed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compress.main([str(compressed_run), "--out", str(tmp_path / "twice")]) == 2
    assert capsys.readouterr().err == (
        f"error: run {compressed_run}: was compressed already, from drawn; compress that\n"
    )
    assert not list(tmp_path.iterdir())


def test_other_photos_are_refused(
    synthetic_run: Path, synthetic_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(synthetic_photos, other)
    first = open_run(synthetic_run).dataset.photos[0].path
    (other / first).write_bytes(b"another picture")
    out = tmp_path / "out"
    command = [str(synthetic_run), "--photos-root", str(other), "--out", str(out)]
    assert compress.main(command) == 2
    assert f"error: {other / first}: has changed since" in capsys.readouterr().err
    shutil.rmtree(other)
    assert compress.main(command) == 2
    assert "give --photos-root" in capsys.readouterr().err
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_what_is_there_is_not_replaced(
    synthetic_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert compress.main([str(synthetic_run), "--out", str(tmp_path), "--overwrite"]) == 2
    assert "is not a run, so it is not replaced" in capsys.readouterr().err
    assert compress.main([str(synthetic_run), "--out", str(synthetic_run), "--overwrite"]) == 2
    assert "is the run to compress; give another --out" in capsys.readouterr().err
    assert (synthetic_run / "model.keras").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--reduce", "1"], "argument --reduce: 1 is not more than 1"),
        (["--reduce", "10", "--target-ms", "5"], "not allowed with argument --reduce"),
        (["--size", "100"], "100 is not a multiple of 32 from 64 to 224, nor auto"),
        (["--measured", "board.csv"], "--measured is for --target-ms; give that too"),
        (["--views", "9"], "9 is over 8"),
    ],
)
def test_flags_that_cannot_be(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compress.main(["runs/any", *flags])
    assert said in capsys.readouterr().err


def test_a_photo_that_changed_is_not_solved_on(tmp_path: Path) -> None:
    dataset = find_photos(draw_flowers(tmp_path / "photos", 3))
    one, two = dataset.photos[:2]
    (dataset.root / one.path).write_bytes((dataset.root / two.path).read_bytes())
    assert read(dataset, [two], 32).shape == (1, 32, 32, 3)
    with pytest.raises(PhotosError, match=r"has changed since it was trained with"):
        read(dataset, [one], 32)


def test_a_boards_timings(tmp_path: Path, synthetic_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = tmp_path / "board.csv"
    board.write_text("engine,gmacs,ms\nlitert 2.3.0,15.35,900\nlitert 2.3.0,1.5,110\nonnx 1.32.0,1.5,90\n")
    assert read_board(board, "litert") == [(1.5, 110.0), (15.35, 900.0)]
    for text, reason in (
        ("engine,ms\nlitert,3\n", r"its columns must be engine, gmacs, ms"),
        ("engine,gmacs,ms\nonnx,1,3\n", "has no timing of litert"),
        ("engine,gmacs,ms\nlitert,1,-3\n", "has no timing of litert"),
        ("engine,gmacs,ms\nlitert,1,nan\n", "has no timing of litert"),
        (f"engine,gmacs,ms\nlitert,1,{200_000 * '3'}\n", "field larger than field limit"),
    ):
        board.write_text(text)
        out = str(tmp_path / "out")
        assert (
            compress.main([str(synthetic_run), "--target-ms", "9", "--measured", str(board), "--out", out])
            == 2
        )
        assert reason in capsys.readouterr().err


def test_the_largest_network_within_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    board = [(1.0, 40.0), (15.35, 600.0)]
    prices = PruningCosts(EVEN, {224: 0.0, 160: 0.1})
    size, widths = compress._within(Compression(target_ms=100.0, measured="board.csv"), board, prices, 5)
    gmacs = macs(widths, size) / 1e9
    assert np.interp(gmacs, *zip((0, 0), *board, strict=True)) <= 100
    assert gmacs > 15.35 / 8, "eight times fewer would have been too few"
    assert "6 times fewer multiplications take" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--target-ms 1: even 64 times fewer .* give a longer one"):
        compress._within(Compression(target_ms=1.0, measured="board.csv"), board, prices, 5)


def test_more_than_any_size_can_give_is_refused(
    synthetic_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert compress.main([str(synthetic_run), "--reduce", "5000", "--out", str(out)]) == 2
    assert "error: at 64x64 no more channels can go" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "told before any work"
    with pytest.raises(UserError, match=r"at 160x160 no more channels can go"):
        cheapest(PruningCosts(EVEN, {224: 0.0, 160: 0.1}), 1000)


def test_a_smaller_input_is_taken_where_channels_cost_more() -> None:
    assert cheapest(PruningCosts(EVEN, {224: 0.0, 160: 0.0}), 2)[0] == 160
    assert cheapest(PruningCosts(EVEN, {224: 0.0, 160: 99.0}), 2)[0] == 224
