"""The table of all evaluations, as plain text and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under columns. The first column has the names of the rows."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells, expected {len(self.columns)}: {row}")

    def text(self) -> str:
        """Aligned columns, for terminals."""
        widths = [max(map(len, cells)) for cells in zip(self.columns, *self.rows)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (self.columns, *self.rows))

    def markdown(self) -> str:
        """A table for pages such as those in docs/."""
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.columns, ("---",) * len(self.columns), *self.rows))


def number(value: float | None, interval: Sequence[float] | None = None, *, digits: int = 3) -> str:
    """A figure with its interval, such as "0.512 [0.481, 0.540]". "-": there is none."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + (f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else "")


def percent(value: float | None, interval: Sequence[float] | None) -> str:
    """A share with its interval, such as " 93 % [ 88,  97]". "-": there is none."""
    if value is None:
        return "        -"
    return f"{100 * value:3.0f} %" + (f" [{100 * interval[0]:3.0f}, {100 * interval[1]:3.0f}]" if interval else "")


def count(number: int, what: str) -> str:
    """A number of things, such as "1 clip" or "1,200 clips"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def page(*parts: str, notes: Sequence[str] = ()) -> str:
    """A report in plain text: its parts with empty lines between them, and the notes at its end."""
    return "\n\n".join([*parts, *(["\n".join(f"note: {note}" for note in notes)] if notes else [])])
