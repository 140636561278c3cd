"""Text for one line of output: counts, and text from outside the program, made safe to print and to align."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

# Zero-width (non-)joiners are invisible, but part of words in Persian and many Indian scripts.
JOINERS = dict.fromkeys((0x200C, 0x200D))
MAX_NAME_LENGTH = 200
# Where a spreadsheet may begin to read a formula: at the start of a cell, and behind a semicolon, which
# separates cells in many countries. https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = r"""(?=["'\s]*[=+\-@\uff1d\uff0b\uff0d\uff20])"""


def is_name(text: str) -> bool:
    """Whether a text has 1 to 200 printable characters, so that a terminal and a file system can hold it.

    Joiners and spaces alone are not a name: nobody sees them.
    """
    visible = text.translate(JOINERS)
    return len(text) <= MAX_NAME_LENGTH and visible.isprintable() and visible.strip() != ""


def printable(text: str) -> str:
    """Returns the text with every character escaped that could break the line or control the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_name(name: str) -> str:
    """Returns a file name as `printable` does, with backslashes doubled: different names stay different."""
    return printable(name.replace("\\", "\\\\"))


def escape_formulas(text: str) -> str:
    """Returns the text of a CSV cell with `'` before each place where a spreadsheet would read a formula."""
    return re.sub(f"(^|;){_FORMULA}", r"\1'", text)


def unescape_formulas(text: str) -> str:
    """Returns the text that `escape_formulas` was given."""
    return re.sub(f"(^|;)'{_FORMULA}", r"\1", text)


def pluralize(count: int, noun: str) -> str:
    """Returns such as "1 photo" or "2 photos"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def display_width(text: str) -> int:
    """The columns a text takes on a terminal: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(char) or ord(char) in JOINERS else 2 if east_asian_width(char) in "WF" else 1
        for char in text
    )


def pad(text: str, columns: int) -> str:
    """Returns the text with spaces after it, so that it takes `columns` columns on a terminal."""
    return text + " " * (columns - display_width(text))


def align_columns(rows: Sequence[Sequence[str]], left: Container[str] | None = None) -> list[str]:
    """Returns the lines of a table, whose first row has the titles of the columns.

    The columns with the titles in `left` (None: all) align to the left, the others to the right.
    """
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            pad(cell, width) if left is None or title in left else " " * (width - display_width(cell)) + cell
            for title, cell, width in zip(rows[0], row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def truncate(text: str, columns: int) -> str:
    """Returns as much of a text as fits into `columns` columns. ANSI styles are kept and take no columns."""
    parts, free = [], columns
    for part in re.split("(\x1b\\[[0-9;]*m)", text):
        if part.startswith("\x1b"):
            parts.append(part)
            continue
        for char in part:
            free -= display_width(char)
            if free < 0:
                break
            parts.append(char)
    return "".join(parts)
