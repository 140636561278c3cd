"""Fill the README's blocks: tables from what the benchmarks recorded, output from commands run here and now.

    python -m benchmarks.readme PHOTO [DEMO_LOG]

PHOTO is YellowFlower.jpg of Debian's mate-backgrounds package; DEMO_LOG what `make demo` printed.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runtime.bench import BenchRow, report

ROOT = Path(__file__).resolve().parent.parent
PARITY = ROOT / "models/flowers/parity.csv"
REFERENCE = ROOT / "benchmarks/reference/intel_xeon_2_cores.csv"


def main(photo: str, demo_log: str | None = None) -> int:
    """Rewrites README.md; blocks without a source stay as they are."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    outputs = {"classify": classify(photo), "json": classify(photo, "--json"), "auto": auto(photo)}
    outputs |= camera(photo) | page(photo) | {"install": install()} | signed()
    if demo_log:
        outputs["demo"] = tail_of_demo(Path(demo_log).read_text(encoding="utf-8"))
    for name, said in outputs.items():
        text = replace(text, f"output: {name}", f"```\n{said.strip()}\n```")
    for name, make in TABLES.items():
        text = replace(text, f"table: {name}", make())
    readme.write_text(text, encoding="utf-8")
    return 0


def classify(photo: str, *flags: str) -> str:
    """What the command prints for a photo that lies in the working directory."""
    path = Path(photo).resolve()
    with tempfile.TemporaryDirectory() as cache:
        return run("classify", path.name, *flags, cwd=path.parent, cache=cache).stdout.replace(f"{ROOT}/", "")


def auto(photo: str) -> str:
    """What --verbose says of the engine, before and after this machine was measured."""
    said = []
    with tempfile.TemporaryDirectory() as cache:
        for measured in (False, True):
            if measured:
                run("bench", "--save", cwd=ROOT, cache=cache)
            done = run("classify", str(Path(photo).resolve()), "--verbose", cwd=ROOT, cache=cache)
            said += [line for line in done.stderr.splitlines() if line.startswith("auto: ")]
    return "\n".join(said)


def run(module: str, *arguments: str, cwd: Path, cache: str) -> subprocess.CompletedProcess[str]:
    """A command of runtime on the released model, with a cache of its own."""
    command = [sys.executable, "-m", f"runtime.{module}", "--model", str(ROOT / "models/flowers"), *arguments]
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": cache, "TZ": "UTC"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)


def bench() -> str:
    """What `python -m runtime.bench` printed when it wrote the reference."""
    with REFERENCE.open(encoding="utf-8", newline="") as file:
        rows = [
            BenchRow(**{name: typed(name, text) for name, text in row.items()})
            for row in csv.DictReader(file)
        ]
    return f"```\n{report(rows)}\n```"


def typed(name: str, text: str) -> str | int | float | None:
    kind = BenchRow.__annotations__[name]
    if kind == float | None:
        return float(text) if text else None
    return kind(text)  # type: ignore[no-any-return]


def camera(photo: str) -> dict[str, str]:
    """What --camera tells of a clip: the photo for three seconds, then a hand over the lens for two."""
    import av
    import numpy as np
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        picture = np.asarray(Image.open(photo).convert("RGB").resize((1920, 1080)))
        random = np.random.default_rng(0)
        with av.open(f"{folder}/garden.mp4", "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
            for number in range(150):
                pixels = picture if number < 90 else random.integers(20, 40, picture.shape, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        command = [sys.executable, "-m", "runtime.classify", "--model", str(ROOT / "models/flowers")]
        command += ["--camera", "garden.mp4"]

        def see(*flags: str) -> str:
            done = run("classify", "--camera", "garden.mp4", *flags, cwd=Path(folder), cache=folder)
            return done.stdout.replace(f"{ROOT}/", "")

        return {
            "camera": line_on_a_terminal(command, folder).replace(f"{ROOT}/", ""),
            "camera changes": see("--on-change"),
            "camera json": see("--json", "--every", "2s").splitlines()[1],
        }


def watch(photo: str) -> str:
    """The table that --watch makes of the photo and of a file that is none."""
    with tempfile.TemporaryDirectory() as folder:
        arrived, table = Path(folder, "arrived"), Path(folder, "results.csv")
        arrived.mkdir()
        shutil.copy(photo, arrived / "photo.jpg")
        (arrived / "cut.jpg").write_bytes(Path(photo).read_bytes()[:5000])
        command = [sys.executable, "-m", "runtime.classify", "--model", str(ROOT / "models/flowers")]
        process = subprocess.Popen(
            [*command, "--watch", str(arrived), "--out", str(table)],
            env={"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not table.exists() or table.read_text().count("\n") < 3:
            time.sleep(0.1)
        process.terminate()
        process.wait()
        return table.read_text()


def line_on_a_terminal(command: list[str], folder: str) -> str:
    """The header, and the line that is redrawn as it stood half way, without its colours."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.chdir(folder)
        os.execve(command[0], command, {"PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONUTF8": "1"})
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    said = b""
    with suppress(OSError):  # how a terminal's end is told
        while data := os.read(terminal, 4096):
            said += data
    os.waitpid(pid, 0)
    text = re.sub(r"\x1b\[[0-9;]*[mK]", "", said.decode())
    header, _, drawn = text.partition("\r\n")
    lines = [line.strip() for line in drawn.split("\r") if line.strip()]
    return f"{header}\n{lines[len(lines) // 2]}"


def page(photo: str) -> dict[str, str]:
    """What the service prints at its start, and what curl gets from it for a photo and for a text."""
    command = [sys.executable, "-m", "runtime.serve", "--model", "models/flowers"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            started = process.stdout.readline() + process.stdout.readline()

            def curl(file: str) -> str:
                asked = f"curl -F file=@{file} http://127.0.0.1:8080/classify"
                where = Path(photo).resolve().parent if file == Path(photo).name else ROOT
                done = subprocess.run(
                    [*asked.split(), "--silent"], cwd=where, capture_output=True, text=True, check=True
                )
                return f"$ {asked}\n{done.stdout}"

            return {"serve": started, "curl": f"{curl(Path(photo).name)}\n{curl('README.md')}"}
        finally:
            process.terminate()


def install() -> str:
    """What the install script would do on a Pi with the release of Debian that is here."""
    command = [ROOT / "deploy/install.sh", "--dry-run", "--architecture", "arm64"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.replace(str(ROOT), "/home/pi/vgg-edge")


def signed() -> dict[str, str]:
    """What --verify says of the released model under a new key, and of one whose byte 100,000 is another."""
    python, model = f"{sys.executable} -m", "models/flowers"
    verify = f"{python} runtime.classify --model {model} --key maker.pub"
    with tempfile.TemporaryDirectory() as there:
        shutil.copytree(ROOT / model, Path(there, model))

        def said(command: str) -> str:
            return subprocess.run(
                command.split(),
                cwd=there,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ).stdout

        said("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out maker.key")
        said("openssl pkey -in maker.key -pubout -out maker.pub")
        said(f"{python} export.sign {model} maker.key")
        holds = said(f"{verify} --verify")
        file = Path(there, model, "flowers_int8.tflite")
        data = bytearray(file.read_bytes())
        data[100_000] ^= 1
        file.write_bytes(data)
        return {"verify": holds, "refused": said(f"{verify} photo.jpg")}


def tail_of_demo(log: str) -> str:
    """From the parity table on, without the paths of the machine it ran on."""
    lines = log.splitlines()
    start = max(i for i, line in enumerate(lines) if line.startswith("format "))
    return "\n".join(re.sub(r"\S*/(?=[^/\s]+/[^/\s]+\.jpg)", "", line) for line in lines[start:])


def parity() -> str:
    """models/flowers/parity.csv as Markdown."""
    with PARITY.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    head = "| file | engine | MB | top-1 | agree | mean Δp | p99 | max | uncompressed | ms |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [
            f"{row['format']} {row['precision']}",
            row["engine"],
            f"{int(row['bytes']) / 1e6:.1f}",
            f"{100 * float(row['top1']):.1f} %",
            f"{100 * float(row['agreement']):.1f} %",
            *(f"{float(row[name]):.4f}" for name in ("mean_dp", "p99_dp", "max_dp")),
            f"{100 * float(row['uncompressed_agreement']):.1f} %",
            f"{float(row['ms']):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    top1 = f"{100 * float(rows[0]['reference_top1']):.1f} %"
    return "\n".join(
        [*lines, "", f"n = {rows[0]['n']} photos; the float32 Keras model has a top-1 of {top1}."]
    )


def recorded(name: str) -> Callable[[], str]:
    return lambda: (ROOT / "benchmarks" / name).read_text(encoding="utf-8")


TABLES: dict[str, Callable[[], str]] = {
    "parity": parity,
    "bench": bench,
    "int8": recorded("int8.md"),
    "classify": recorded("classify.md"),
    "finetune": recorded("finetune.md"),
    "known": recorded("known.md"),
    "train": recorded("train.md"),
    "extraction": recorded("extraction.md"),
    "compress": recorded("compress.md"),
    "released": recorded("released.md"),
    "soak": recorded("soak.md"),
    "memory": recorded("memory.md"),
    "serve": recorded("serve.md"),
}


def replace(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"error: README.md has no block `{name}`; put it back")
    return pattern.sub(lambda found: f"{found[1]}{content.strip()}\n{found[2]}", text)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
