"""Fill the README's blocks: tables from what the benchmarks recorded, output from commands run here and now.

    python -m benchmarks.readme PHOTO [DEMO_LOG]

PHOTO is YellowFlower.jpg of Debian's mate-backgrounds package; DEMO_LOG what `make demo` printed.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARITY = ROOT / "models/flowers/parity.csv"


def main(photo: str, demo_log: str | None = None) -> int:
    """Rewrites README.md; blocks without a source stay as they are."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    outputs = {"classify": classify(photo), "json": classify(photo, "--json"), "install": install()}
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
    command = [
        sys.executable,
        "-m",
        "runtime.classify",
        "--model",
        str(ROOT / "models/flowers"),
        path.name,
        *flags,
    ]
    done = subprocess.run(
        command, cwd=path.parent, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    return done.stdout.replace(f"{ROOT}/", "")


def install() -> str:
    """What the install script would do on a Pi with the release of Debian that is here."""
    command = [ROOT / "deploy/install.sh", "--dry-run", "--architecture", "arm64"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.replace(str(ROOT), "/home/pi/vgg-edge")


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
    "int8": recorded("int8.md"),
    "classify": recorded("classify.md"),
    "finetune": recorded("finetune.md"),
    "known": recorded("known.md"),
    "train": recorded("train.md"),
    "extraction": recorded("extraction.md"),
    "compress": recorded("compress.md"),
    "released": recorded("released.md"),
    "memory": recorded("memory.md"),
}


def replace(text: str, name: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"error: README.md has no block `{name}`; put it back")
    return pattern.sub(lambda found: f"{found[1]}{content.strip()}\n{found[2]}", text)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
