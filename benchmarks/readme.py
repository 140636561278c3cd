"""Fill the blocks in README.md and docs/*.md: tables from recorded benchmarks, output from commands run here.

    python -m benchmarks.readme [DEMO_LOG]

DEMO_LOG is a file with the output of `make demo`. Run it in a clean checkout, whose only model is the
released one. A block starts with `<!-- table: NAME -->` or `<!-- output: NAME -->` and ends with
`<!-- end -->`. A block without a source here keeps its content, and its name is printed.
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
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.markdown_table import table_head, table_row
from runtime.benchmark.report import BenchRow, format_report
from runtime.inference.engines import engine_name
from runtime.model_file.index import read_index

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks"
RELEASED = ROOT / "models" / "flowers"
SMALL = ROOT / "models" / "flowers_small"
PHOTO = "docs/sunflower.jpg"  # a drawing; the path as the pages write it
REFERENCE = RECORDS / "reference" / "intel_xeon_2_cores.csv"
RECORDED_TABLES = (
    *("int8", "classify", "finetune", "known", "train", "extraction", "compress", "released"),
    *("soak", "memory", "serve", "heads", "imbalance", "near_duplicates", "scale", "clients"),
    *("instructions", "boards", "leave_one_out", "teach", "reject", "solar_cells"),
)
BLOCK = re.compile(r"(?<=<!-- )((?:table|output): [^>\n]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def main(demo_log: str | None = None) -> int:
    """Rewrite every block that has a source; only the commands of blocks that exist are run."""
    sources = {**table_sources(), **output_sources()}
    if demo_log:
        sources["output: demo"] = partial(demo_output, Path(demo_log))
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        page.write_text(BLOCK.sub(partial(filled, page=page, sources=sources), text), "utf-8")
    return 0


def filled(block: re.Match[str], page: Path, sources: dict[str, Callable[[], str]]) -> str:
    name, marker = block.groups()
    if name not in sources:
        print(f"{page.relative_to(ROOT)}: kept {name}", file=sys.stderr)
        return block[0]
    content = sources[name]().strip()
    return f"{name}{marker}{fenced(content) if name.startswith('output: ') else content}\n"


def fenced(text: str) -> str:
    return f"```\n{text}\n```"


# Tables


def table_sources() -> dict[str, Callable[[], str]]:
    recorded = {name: partial((RECORDS / f"{name}.md").read_text, "utf-8") for name in RECORDED_TABLES}
    tables: dict[str, Callable[[], str]] = {
        **recorded,
        "parity": parity_table,
        "bench": bench_table,
        "results": results_table,
    }
    return {f"table: {name}": make for name, make in tables.items()}


def parity_table() -> str:
    """models/flowers/parity.csv as Markdown."""
    rows = read_csv(RELEASED / "parity.csv")
    columns = ("file", "engine", "MB", "top-1", "agree", "mean Δp", "p99", "max", "uncompressed", "ms")
    lines = [table_head(*columns)]
    for row in rows:
        cells = (
            f"{row['format']} {row['precision']}",
            row["engine"],
            f"{int(row['bytes']) / 1e6:.1f}",
            f"{100 * float(row['top1']):.1f} %",
            f"{100 * float(row['agreement']):.1f} %",
            *(f"{float(row[name]):.4f}" for name in ("mean_dp", "p99_dp", "max_dp")),
            f"{100 * float(row['uncompressed_agreement']):.1f} %",
            f"{float(row['ms']):.1f}",
        )
        lines.append(table_row(*cells))
    top1 = f"{100 * float(rows[0]['reference_top1']):.1f} %"
    return "\n".join(
        [*lines, "", f"n = {rows[0]['n']} photos; the float32 Keras model has a top-1 of {top1}."]
    )


def results_table() -> str:
    """The released models beside their alternatives, from compress.csv, with the size of their files."""
    names = {
        ("distilled, 40 epochs", 10): ("**vgg-edge**: VGG16, fine-tuned, compressed 10 times", RELEASED),
        ("distilled, 80 epochs", 30): ("**vgg-edge, small**: the same, compressed 30 times", SMALL),
        ("EfficientNet-Lite0, fine-tuned", None): ("EfficientNet-Lite0, fine-tuned", None),
        ("MobileNetV2, fine-tuned", None): ("MobileNetV2, 160 pixels, fine-tuned", None),
        ("uncompressed", 1): ("VGG16, fine-tuned, not compressed", None),
    }
    lines = [table_head("model", "top-1", "others named", "GMAC", "MB", "LiteRT", "ONNX Runtime")]
    rows = read_csv(RECORDS / "compress.csv")
    for key, (name, folder) in names.items():
        of_key = [row for row in rows if (row["way"], float(row["reduce"] or 0) or None) == key]
        by_engine = {engine_name(row["engine"]): row for row in of_key}
        litert, onnx = by_engine["litert"], by_engine["onnx"]
        megabytes = float(litert["mb"])
        if folder:
            megabytes = next(file.bytes for file in read_index(folder).files if file.format == "tflite") / 1e6
        cells = (
            name,
            *(f"{100 * float(litert[name]):.1f} %" for name in ("int8_top1", "others_named")),
            f"{float(litert['gmacs']):.2f}",
            f"{megabytes:.1f}",
            *(f"{float(row['ms']):.1f} ms" for row in (litert, onnx)),
        )
        lines.append(table_row(*cells))
    return "\n".join(lines)


def bench_table() -> str:
    """The text that `python -m runtime.bench` printed when it wrote the reference."""
    rows = [
        BenchRow(**{name: parsed(name, text) for name, text in row.items()}) for row in read_csv(REFERENCE)
    ]
    return fenced(format_report(rows))


def parsed(name: str, text: str) -> Any:
    """The value of a field of BenchRow: str, int, float or None."""
    kind = BenchRow.__annotations__[name]
    if kind == float | None:
        return float(text) if text else None
    return kind(text)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Output of commands


def output_sources() -> dict[str, Callable[[], str]]:
    outputs: dict[str, Callable[[], str]] = {
        "classify": classify_output,
        "json": partial(classify_output, "--json"),
        "auto": auto_output,
        "watch": watch_output,
        "install": install_output,
    }
    for names, run in (
        (("camera", "camera changes", "camera json"), camera_outputs),
        (("serve", "curl"), serve_outputs),
        (("verify", "refused"), signature_outputs),
    ):
        outputs |= {name: partial(lambda run, name: run()[name], run, name) for name in names}
    return {f"output: {name}": make for name, make in outputs.items()}


def classify_output(*flags: str) -> str:
    with tempfile.TemporaryDirectory() as cache_home:
        return run_command("classify", PHOTO, *flags, cache_home=cache_home).stdout


def auto_output() -> str:
    """The engine choice that --verbose prints, before and after a benchmark of this machine."""
    lines = []
    with tempfile.TemporaryDirectory() as cache_home:
        for measured in (False, True):
            if measured:
                run_command("bench", "--save", cache_home=cache_home)
            done = run_command("classify", PHOTO, "--verbose", cache_home=cache_home)
            lines += [line for line in done.stderr.splitlines() if line.startswith("auto: ")]
    return "\n".join(lines)


def run_command(module: str, *arguments: str, cache_home: str) -> subprocess.CompletedProcess[str]:
    """Run a command of runtime in the checkout, with an empty cache."""
    return subprocess.run(
        [sys.executable, "-m", f"runtime.{module}", *arguments],
        cwd=ROOT,
        env={"XDG_CACHE_HOME": cache_home, "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=True,
    )


@cache
def camera_outputs() -> dict[str, str]:
    """--camera on a clip of five seconds: the flower for three, then darkness, as of a hand over the lens."""
    with tempfile.TemporaryDirectory() as folder:
        clip = f"{folder}/garden.mp4"
        write_clip(Path(clip))

        def camera(*flags: str) -> str:
            done = run_command("classify", "--camera", clip, *flags, cache_home=folder)
            return done.stdout.replace(f"{folder}/", "")

        command = [sys.executable, "-m", "runtime.classify", "--camera", clip]
        return {
            "camera": terminal_line(command).replace(f"{folder}/", ""),
            "camera changes": camera("--on-change"),
            "camera json": camera("--json", "--every", "2s").splitlines()[1],
        }


def write_clip(clip: Path) -> None:
    import av
    import numpy as np
    from PIL import Image

    picture = np.asarray(Image.open(ROOT / PHOTO).convert("RGB").resize((1920, 1080)))
    random = np.random.default_rng(0)
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for number in range(150):
            pixels = picture if number < 90 else random.integers(20, 40, picture.shape, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def terminal_line(command: list[str]) -> str:
    """The header, and the redrawn line half way through, without colours."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(command[0], command, {"TERM": "xterm", "PYTHONUTF8": "1"})
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    output = b""
    with suppress(OSError):  # Linux reports the end of a terminal as an error
        while data := os.read(terminal, 4096):
            output += data
    os.waitpid(pid, 0)
    text = re.sub(r"\x1b\[[0-9;]*[mK]", "", output.decode())
    header, _, redrawn = text.partition("\r\n")
    lines = [line.strip() for line in redrawn.split("\r") if line.strip()]
    return f"{header}\n{lines[len(lines) // 2]}"


def watch_output() -> str:
    """The table that --watch writes for the photo and for a truncated file."""
    with tempfile.TemporaryDirectory() as folder:
        arriving, table = Path(folder, "arriving"), Path(folder, "results.csv")
        arriving.mkdir()
        shutil.copy(ROOT / PHOTO, arriving)
        (arriving / "cut.jpg").write_bytes((ROOT / PHOTO).read_bytes()[:5000])
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.classify", "--watch", str(arriving), "--out", str(table)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not table.exists() or table.read_text().count("\n") < 3:
            time.sleep(0.1)
        process.terminate()
        process.wait()
        return table.read_text()


@cache
def serve_outputs() -> dict[str, str]:
    """The lines that the service prints at its start, and curl's answers for a photo and for a text file."""
    command = [sys.executable, "-m", "runtime.serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            started = process.stdout.readline() + process.stdout.readline()
            address = started.split("http://")[1].split()[0]  # of any free port; the page shows the default

            def curl(file: str) -> str:
                line = f"curl -F file=@{file} http://{address}/classify"
                done = subprocess.run(
                    [*line.split(), "--silent"], cwd=ROOT, capture_output=True, text=True, check=True
                )
                return f"$ {line}\n{done.stdout}"

            answers = f"{curl(PHOTO)}\n{curl('README.md')}"
            default = "127.0.0.1:8080"
            return {
                name: text.replace(address, default) for name, text in (("serve", started), ("curl", answers))
            }
        finally:
            process.terminate()


def install_output() -> str:
    """The dry run of the install script, as on a Raspberry Pi with this machine's release of Debian."""
    command = [str(ROOT / "deploy/install.sh"), "--dry-run", "--architecture", "arm64"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.replace(str(ROOT), "/home/pi/vgg-edge")


@cache
def signature_outputs() -> dict[str, str]:
    """--verify on the released model signed with a new key, and on a copy with one changed byte."""
    python, model = f"{sys.executable} -m", "models/flowers"
    verify = f"{python} runtime.classify --model {model} --key maker.pub"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(RELEASED, Path(folder, model))

        def output(command: str) -> str:
            return subprocess.run(
                command.split(),
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ).stdout

        output("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out maker.key")
        output("openssl pkey -in maker.key -pubout -out maker.pub")
        output(f"{python} export.sign {model} maker.key")
        verified = output(f"{verify} --verify")
        file = Path(folder, model, "flowers_int8.tflite")
        data = bytearray(file.read_bytes())
        data[100_000] ^= 1
        file.write_bytes(data)
        return {"verify": verified, "refused": output(f"{verify} photo.jpg")}


def demo_output(log: Path) -> str:
    """The end of the demo's output, from the parity table on, without this machine's paths."""
    lines = log.read_text(encoding="utf-8").splitlines()
    start = max(at for at, line in enumerate(lines) if line.startswith("format "))
    return "\n".join(re.sub(r"\S*/(?=[^/\s]+/[^/\s]+\.jpg)", "", line) for line in lines[start:])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
