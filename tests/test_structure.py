"""The limits that keep the code and the documentation readable."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

from tests.helpers import ROOT

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 450
SOURCES = sorted(
    path
    for package in ("train", "export", "runtime", "benchmarks")
    for path in (ROOT / package).rglob("*.py")
)


def long_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines"


def test_no_function_is_longer_than_60_lines() -> None:
    assert [found for path in SOURCES for found in long_functions(path)] == []


def test_no_file_is_longer_than_450_lines() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert [str(path.relative_to(ROOT)) for path, count in lines.items() if count > MAX_FILE_LINES] == []


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
COMMAND_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which names old commands too
MODULE_OF = {
    "train": "train",
    "compress": "train.compress",
    "refit": "train.refit",
    "export": "export",
    "classify": "runtime.classify",
    "serve": "runtime.serve",
    "bench": "runtime.bench",
    "browser": "runtime.browser_page",
    "adapt": "runtime.adapt",
    "teach": "runtime.teach",
}  # by the name of the `vgg-edge` command


@pytest.mark.parametrize(("name", "lines"), [("README.md", 150), ("CONTRIBUTING.md", 120)])
def test_the_front_pages_are_short(name: str, lines: int) -> None:
    assert (ROOT / name).read_text(encoding="utf-8").count("\n") <= lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"", text)
    broken = []
    for link in (inline or image for inline, image in links):
        if re.match(r"https?:|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists_with_its_flags(page: Path) -> None:
    missing = []
    for module, arguments in commands(page.read_text(encoding="utf-8")):
        used = {module, *re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments)}
        missing += [f"{module} {word}" for word in used - words_of(module)]
    assert missing == []


@pytest.mark.parametrize("page", COMMAND_PAGES, ids=lambda page: page.name)
def test_every_make_target_of_a_page_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    used = {
        found[1]
        for command in code_of(page.read_text(encoding="utf-8"))
        if (found := re.match(r"[`$\s]*(?:[A-Z_]+=\S+ )*make ([a-z0-9][a-z0-9-]*)", command))
    }
    assert used <= targets


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The Python modules that a page's code calls, each with the rest of its command line."""
    for line in code_of(text):
        for command in re.split(r"[|;]|&&|(?<!\S)#", line):
            if found := re.search(
                r"python3? -m ([a-z_]+(?:\.[a-z_]+)*)(?![\w.])(.*)|vgg-edge ([a-z]+)\b(.*)", command
            ):
                module = found[1] or MODULE_OF.get(found[3], "")
                if module.partition(".")[0] in ("train", "export", "runtime", "benchmarks", "tests"):
                    yield module, found[2] or found[4] or ""


def code_of(text: str) -> list[str]:
    """The lines of all fenced blocks, and the inline code."""
    code = re.findall(r"```.*?```|`[^`\n]+`", text.replace("\\\n", " "), re.DOTALL)
    return [line for block in code for line in block.splitlines()]


@cache
def words_of(module: str) -> set[str]:
    """The name and the flags of a command; nothing if it does not exist.

    The flags of benchmarks, whose imports are heavy, and of workers without --help are read from the source.
    """
    source = ROOT.joinpath(*module.split("."))
    file = source / "__main__.py" if source.is_dir() else source.with_suffix(".py")
    if not file.exists():
        return set()
    text = file.read_text(encoding="utf-8")
    if module.partition(".")[0] in ("train", "export", "runtime") and "def main()" not in text:
        text = help_of(f"{module}.__main__" if source.is_dir() else module)
    return {module, *re.findall(r"(?<![\w-])--?[a-z][\w-]*", text)}


def help_of(module: str) -> str:
    with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(["--help"])
    assert ended.value.code == 0
    return printed.getvalue()


def test_every_message_of_the_troubleshooting_page_occurs_in_the_code() -> None:
    texts = [text for path in SOURCES for text in literals(path)]
    texts += [(ROOT / name).read_text(encoding="utf-8") for name in ("deploy/install.sh", "Makefile")]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [m for m in re.findall(r"^\| `([^`]+)`", page, re.MULTILINE) if m not in MESSAGES_OF_OTHERS]
    assert len(messages) > 30
    assert [message for message in messages if not any(message in text for text in texts)] == []


MESSAGES_OF_OTHERS = {"No module named numpy", "error: externally-managed-environment"}  # of Python and pip


def literals(path: Path) -> Iterator[str]:
    """The strings of a file; an f-string's values are replaced by `…`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_test_that_the_security_page_names_exists() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*\| (.*) \|$", page.partition("### Threats, limits and tests")[2], re.MULTILINE)[
        1:
    ]
    assert len(rows) > 30
    assert [missing for row in rows for missing in missing_tests(row)] == []
    assert list(missing_tests("`test_api.py`: `test_is_gone`, `…is_gone…`; `test_is_gone.py`")) == [
        "test_is_gone",
        "…is_gone…",
        "test_is_gone.py",
    ]
    assert list(missing_tests("`tests/fuzz`: `is_gone`")) == ["is_gone"]
    assert list(missing_tests("none")) == ["none"]


def missing_tests(cell: str) -> Iterator[str]:
    """The names in a cell such as "`test_a.py`: `test_b`, `…c…`; `tests/fuzz`: `d`" that do not exist.

    `…` stands for any characters. A cell without a name is missing itself.
    """
    names = re.findall(r"`([^`]+)`", cell)
    text = ""  # of the files that the names before named
    for name in names:
        if name.endswith(".py") or "/" in name:
            files = (
                list((ROOT / "tests").rglob(name)) if name.endswith(".py") else [ROOT / name / "targets.py"]
            )
            text = "\n".join(file.read_text(encoding="utf-8") for file in files)
            found: object = files
        else:
            pattern = r"\w*".join(map(re.escape, name.split("…")))
            found = re.search(rf"def {pattern}\(|^    \"{pattern}\": Target\(", text, re.MULTILINE)
        if not found:
            yield name
    if not names:
        yield cell
