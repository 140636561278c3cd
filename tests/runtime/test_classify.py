"""The classify command and the Classifier."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime import Classifier, Prediction
from runtime.classify import main
from runtime.common.errors import EngineError, PictureError
from runtime.inference.prefetch import QUEUE_SIZE
from tests.helpers import PATIENCE, ROOT
from tests.runtime.conftest import EACH_ENGINE
from tests.runtime.preprocess.hostile import HOSTILE

Capture = pytest.CaptureFixture[str]


def command(*arguments: str | bytes | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    options = {"capture_output": True, "timeout": PATIENCE, **options}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run([sys.executable, "-m", "runtime.classify", *arguments], env=environment, **options)


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_photos_are_printed_as_an_aligned_table(colours: Path, photos: Path, capsys: Capture) -> None:
    assert main([str(photos / "red.jpg"), str(photos / "blue.png"), "--model", str(colours)]) == 0
    out, err = capsys.readouterr()
    header, red, blue = out.splitlines()
    assert header.startswith(f"{colours / 'colours_dynamic.tflite'} on litert ") and err == ""
    assert red.split()[:3] == [str(photos / "red.jpg"), "红", "100.0%"]
    assert "blau 0.0%" in red and "\x1b" not in out
    # The names differ by one letter in length, and 红 is two columns wide.
    assert blue.index("100.0%") == red.index("100.0%") + 1


def test_json_has_the_documented_fields(colours: Path, photos: Path, capsys: Capture) -> None:
    assert main([str(photos / "red.jpg"), "--model", str(colours), "--json", "--top", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (answer,) = objects(out)
    assert list(answer) == ["source", "label", "probability", "known", "top", "ms"]
    assert answer["source"] == str(photos / "red.jpg")
    assert (answer["label"], answer["known"]) == ("红", None)
    assert len(answer["top"]) == 2
    assert answer["top"][0] == {"label": answer["label"], "probability": answer["probability"]}
    assert set(answer["ms"]) == {"decode", "infer"} and all(ms >= 0 for ms in answer["ms"].values())


def test_known_is_decided_by_the_contracts_threshold(
    knowing: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    Image.new("RGB", (40, 40), (30, 0, 0)).save(tmp_path / "dark.png")
    names = [str(photos / "red.jpg"), str(tmp_path / "dark.png"), "--model", str(knowing)]
    assert main([*names, "--json"]) == 0
    assert [(answer["label"], answer["known"]) for answer in objects(capsys.readouterr().out)] == [
        ("红", True),
        ("红", False),
    ]
    assert main(names) == 0
    assert "unknown (nearest: 红 0." in capsys.readouterr().out.splitlines()[2]


def test_folders_are_searched_and_sorted_naturally(
    colours: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "all"
    shutil.copytree(photos, folder)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".thumbs").mkdir()
    shutil.copy(photos / "red.jpg", folder / ".thumbs" / "red.jpg")
    shutil.copy(photos / "red.jpg", folder / "._red.jpg")
    assert main([str(folder), "--model", str(colours), "--json"]) == 0
    found = [Path(answer["source"]).relative_to(folder) for answer in objects(capsys.readouterr().out)]
    assert [str(path) for path in found] == [
        "blue.png",
        "green.jpg",
        *(str(Path("more", f"{number}.png")) for number in range(1, 11)),
        "red.jpg",
    ]


def test_patterns_are_expanded(colours: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main([f"{photos}/*.jpg", f"{photos}/**/1*.png", "--model", str(colours), "--json"]) == 0
    names = [Path(answer["source"]).name for answer in objects(capsys.readouterr().out)]
    assert names == ["green.jpg", "red.jpg", "1.png", "10.png"]
    literal = tmp_path / "a[1]*.jpg"
    shutil.copy(photos / "red.jpg", literal)
    assert main([str(literal), "--model", str(colours), "--json"]) == 0
    assert main([f"{photos}/*.heic", str(literal), "--model", str(colours)]) == 1
    assert "*.heic: matches no file" in capsys.readouterr().err


def test_a_picture_is_read_from_standard_input(colours: Path, photos: Path) -> None:
    data = (photos / "green.jpg").read_bytes()
    done = command("-", "--json", "--model", colours, input=data)
    (answer,) = objects(done.stdout.decode())
    assert (answer["source"], answer["label"], done.returncode) == ("-", "grün", 0)
    done = command("-", "--json", "--model", colours, input=b"")
    assert objects(done.stdout.decode()) == [{"source": "-", "error": "is empty"}]
    assert (done.stderr, done.returncode) == (b"error: -: is empty\n", 1)


def test_each_bad_photo_gets_an_error_line_and_the_rest_are_classified(
    colours: Path, photos: Path, tmp_path: Path
) -> None:
    bad = {"text.jpg": b"<html>", "empty.png": b"", "cut.png": (photos / "blue.png").read_bytes()[:60]}
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "bare").mkdir()
    arguments = [*bad, "bare", "nowhere.jpg", photos / "red.jpg"]
    done = command(*arguments, "--model", colours, "--json", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 5 and all(line.startswith("error: ") for line in lines)
    answers = objects(done.stdout.decode())
    errors = {answer["source"]: answer["error"] for answer in answers if "error" in answer}
    assert errors.keys() == {*bad, "bare", "nowhere.jpg"}
    assert errors["bare"] == "no pictures in this folder"
    assert errors["empty.png"] == "is empty"
    assert [answer["label"] for answer in answers if "label" in answer] == ["红"]


def memory_of_tree(pid: int) -> int:
    """Kilobytes in memory of a process and of those that it started."""
    total = 0
    with suppress(OSError, TypeError):
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(re.search(r"VmRSS:\s*(\d+)", status)[1])  # type: ignore[index]
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(memory_of_tree(int(child)) for child in (task / "children").read_text().split())
    return total


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux reports them")
@pytest.mark.parametrize(
    "names",
    [
        (
            *("PPM of comments", "JPEG of Exif segments", "TIFF of 14 million strips", "PNG of text chunks"),
            *("PNG of 65,535 eXIf entries", "JPEG of 364 bytes and 250 megapixels"),
        ),
        (
            *("JPEG of large Exif segments", "TIFF of a million strips", "PNG of 65,535 eXIf entries"),
            *("BMP of runs", "JPEG of 250 megapixels", "PNG of 80 megapixels"),
        ),
    ],
    ids=["found in the wild", "made for the limits"],
)
def test_six_hostile_pictures_beside_a_good_one_take_20_seconds_and_700_mb(
    names: tuple[str, ...], colours: Path, photos: Path, tmp_path: Path
) -> None:
    """They took 244 s and 1.1 GB."""
    for number, name in enumerate(names):
        (tmp_path / f"{number}.jpg").write_bytes(HOSTILE[name]())
    hostile = [str(tmp_path / f"{number}.jpg") for number in range(6)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = [
        sys.executable,
        "-m",
        "runtime.classify",
        *hostile,
        str(photos / "red.jpg"),
        "--model",
        str(colours),
    ]
    with subprocess.Popen(
        run, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of_tree(process.pid))
            time.sleep(0.02)
        out, err = process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 1
    assert out.splitlines()[-1].split()[:2] == [str(photos / "red.jpg"), "红"]
    assert all(line.startswith("error: ") for line in err.splitlines())
    # Of the processor, because other tests may run beside this one.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
    assert peak < 700_000


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    "name",
    ["фото.png", "写真🌷.png", "صورة.png", "a\nb\x1b[2J.png", b"\xff\xfe.png"],
    ids=["cyrillic", "japanese", "arabic", "control", "undecodable"],
)
def test_file_names_may_be_in_any_script(
    colours: Path, photos: Path, tmp_path: Path, name: str | bytes, encoding: str
) -> None:
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))  # noqa: PTH118 (bytes)
    shutil.copy(photos / "blue.png", path)
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    for arguments in ([path], [path, b"--json"], [tmp_path], [path + b".gone"]):
        done = command(*arguments, "--model", colours, env=environment)
        assert done.returncode == (1 if arguments[0] == path + b".gone" else 0), done.stderr
        assert b"Traceback" not in done.stderr and b"\x1b" not in done.stdout + done.stderr
        assert len((done.stdout + done.stderr).splitlines()) == 1 + (b"--json" not in arguments)


def test_usage_model_and_engine_errors_exit_with_2(colours: Path, photos: Path, tmp_path: Path) -> None:
    red = photos / "red.jpg"
    for arguments in (
        [],
        [red, "--engine", "torch"],
        [red, "--threads", "0"],
        [red, "--top", "x"],
        [red, "--model", tmp_path / "none"],
        [red, "--model", tmp_path],
        [red, "--model", colours / "colours_float32.onnx", "--engine", "litert"],
    ):
        done = command(*arguments)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"error: " in done.stderr and b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_engine_names_the_install_command(colours: Path, photos: Path) -> None:
    code = (
        "import runtime.inference.engines as e; e.find_spec = lambda name: None; import sys; "
        "from runtime.classify import main; sys.exit(main(sys.argv[1:]))"
    )
    run = [sys.executable, "-c", code, str(photos / "red.jpg"), "--model", str(colours)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 2
    assert "tflite" in done.stderr and "pip install '.[" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_stderr_is_empty_without_errors(engine: str, colours: Path, photos: Path) -> None:
    done = command(photos / "red.jpg", "--model", colours, "--engine", engine)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
def test_a_closed_pipe_and_ctrl_c_print_nothing(colours: Path, photos: Path) -> None:
    run = [sys.executable, "-m", "runtime.classify", "--model", str(colours), *[str(photos)] * 200]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as head:
        assert head.stdout and head.stderr
        head.stdout.readline()
        head.stdout.close()
        assert head.stderr.read() == b""
        assert head.wait(timeout=PATIENCE) == 141
    with subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as stopped:
        assert stopped.stdout
        stopped.stdout.readline()
        stopped.send_signal(signal.SIGINT)
        _, errors = stopped.communicate(timeout=PATIENCE)
        assert (errors, stopped.returncode) == (b"", 130)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_exits_with_2(colours: Path, photos: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = command(photos, "--model", colours, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert (done.returncode, done.stderr) == (2, b"error: the output: no space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("closed", "code", "out"), [(">&-", 0, 0), ("2>&-", 0, 2), (">&- 2>&-", 0, 0), ("- <&-", 1, 2)]
)
def test_streams_may_be_closed(closed: str, code: int, out: int, colours: Path, photos: Path) -> None:
    line = f"exec {sys.executable} -m runtime.classify --model {colours} {photos / 'red.jpg'} {closed}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (code, out)
    assert done.stderr == ("error: -: is empty\n" if code else "")


def test_a_name_too_long_for_the_file_system_gives_one_line(
    colours: Path, tmp_path: Path, capsys: Capture
) -> None:
    name = "x" * 300
    for arguments in (
        [name, "--model", str(colours)],
        ["--watch", name, "--model", str(colours)],
        [str(tmp_path), "--model", name],
    ):
        assert main(arguments) in (1, 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and name in line


def test_no_warning_from_running_the_module(colours: Path, photos: Path) -> None:
    done = command(photos / "red.jpg", "--model", colours, env={"PYTHONWARNINGS": "error"})
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_shows_a_bar(colours: Path, photos: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    assert (
        command(photos / "red.jpg", "--model", colours, stdout=theirs, capture_output=False).returncode == 0
    )
    assert "██████████" in os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(theirs)


def test_a_photo_imports_no_camera_watcher_or_server(colours: Path, photos: Path) -> None:
    code = (
        "import sys; from runtime.classify import main; main(sys.argv[1:]); sys.exit(' '.join(sys.modules))"
    )
    run = [sys.executable, "-c", code, str(photos / "red.jpg"), "--model", str(colours)]
    modules = subprocess.run(run, cwd=ROOT, capture_output=True, text=True).stderr.split()
    parts = ("runtime.camera.", "runtime.watch.", "runtime.server", "runtime.benchmark")
    loaded = {name for name in modules if name.startswith(parts)}
    assert loaded == {"runtime.camera.flags", "runtime.camera.crop", "runtime.watch.flags"}
    assert not {"av", "sqlite3", "uvicorn", "cryptography", "PIL.ImageCms"} & set(modules)


# tflite-runtime is left to the command's tests: it cannot work in a process that has loaded TensorFlow.
@pytest.mark.parametrize("engine", ["auto", "litert", "onnx"])
def test_the_classifier_accepts_paths_and_bytes(colours: Path, photos: Path, engine: str) -> None:
    classifier = Classifier(colours, engine=engine, threads=1)
    for source in (photos / "red.jpg", str(photos / "red.jpg"), (photos / "red.jpg").read_bytes()):
        answer = classifier(source)
        assert isinstance(answer, Prediction)
        assert (answer.label, answer.known, answer.top[0].label) == ("红", None, "红")
        assert answer.source == (str(source) if not isinstance(source, bytes) else "-")
    with pytest.raises(PictureError, match="is not a picture"):
        classifier(b"no picture")
    with pytest.raises(PictureError, match="nowhere"):
        classifier("nowhere.jpg")


def test_an_unknown_engine_raises_engine_error(colours: Path) -> None:
    with pytest.raises(EngineError, match="no engine is called 'torch'"):
        Classifier(colours, engine="torch")


def test_prefetching_is_bounded_in_order_and_stops(colours: Path, photos: Path) -> None:
    taken = 0

    def sources() -> Iterator[Path]:
        nonlocal taken
        for name in ["red.jpg", "green.jpg", "blue.png", "nowhere.jpg"] * 5:
            taken += 1
            yield photos / name

    classifier = Classifier(colours)
    answers = classifier.predict_many(sources())
    labels = []
    for done, (_, answer) in enumerate(answers, 1):
        labels.append(answer.label if isinstance(answer, Prediction) else "error")
        if done == 5:
            time.sleep(0.3)  # time enough to run ahead without bounds
            assert taken <= done + QUEUE_SIZE + 1
    assert labels == ["红", "grün", "blau", "error"] * 5

    some = classifier.predict_many(sources())
    next(some)
    some.close()
    time.sleep(0.3)
    assert taken < 40


def test_an_error_of_the_callers_own_sources_reaches_the_caller(colours: Path, photos: Path) -> None:
    def sources() -> Iterator[Path]:
        yield photos / "red.jpg"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(Classifier(colours).predict_many(sources()))


def test_bytes_and_binary_files_are_classified(colours: Path, photos: Path) -> None:
    data = (photos / "red.jpg").read_bytes()
    answers = [answer for _, answer in Classifier(colours).predict_many([data, io.BytesIO(data)])]
    assert [(answer.source, answer.label) for answer in answers if isinstance(answer, Prediction)] == [
        ("-", "红")
    ] * 2


def test_photos_are_saved_as_jpegs_without_metadata(
    knowing: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    red, dark = tmp_path / "red.png", tmp_path / "dark.jpg"
    Image.new("RGB", (2000, 1000), (255, 0, 0)).save(red)
    exif = Image.Exif()
    exif[0x010E] = "secret"
    Image.new("RGB", (64, 48), (30, 0, 0)).save(dark, exif=exif)
    (tmp_path / "cut.jpg").write_bytes(dark.read_bytes()[:500])
    arguments = [str(red), str(dark), str(tmp_path / "cut.jpg"), "--model", str(knowing)]
    unknown, sample, photos = (tmp_path / name for name in ("unknown", "sample", "photos"))
    saves = ["--save-unknown", str(unknown), "--save-all", str(sample), "--capture", "rot", str(photos)]
    assert main([*arguments, *saves]) == 1
    err = capsys.readouterr().err
    assert f"saved 1 photo in {unknown}" in err and f"saved 2 photos in {photos / 'rot'}" in err
    (saved,) = unknown.iterdir()
    assert Image.open(saved).size == (64, 48) and b"secret" not in saved.read_bytes()
    assert {Image.open(path).size for path in sample.iterdir()} == {(960, 480), (64, 48)}
    assert len(list((photos / "rot").iterdir())) == 2


def test_a_photo_on_standard_input_is_saved(knowing: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    ended = command("-", "--model", knowing, "--save-all", folder, input=(photos / "red.jpg").read_bytes())
    assert ended.returncode == 0 and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        (["--verify", "--save-all", "a"], "--save-all"),
        (["--watch", "a", "--capture", "b", "c"], "--capture"),
        (["a.jpg", "--new-class"], "--capture"),
    ],
)
def test_a_flag_to_save_pictures_without_pictures_is_a_usage_error(
    flags: list[str], needed: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert needed in capsys.readouterr().err.splitlines()[-1]
