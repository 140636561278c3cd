"""The lines of a Markdown table."""

from __future__ import annotations


def table_head(*columns: str) -> str:
    """Returns the row of column titles and the line below it."""
    return f"{table_row(*columns)}\n|{'---|' * len(columns)}"


def table_row(*cells: str) -> str:
    """Returns a row of cells."""
    return f"| {' | '.join(cells)} |"
