"""Tables in Markdown, and numbers in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

SMALL = 1e-4  # numbers below it are written with an exponent


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with these headings and cells."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def exact(value: float) -> str:
    """Write a number as no other one is written, and as short as that allows: 3600, 0.004, 1234567."""
    return repr(float(value)).removesuffix(".0")


def decimals(value: float, digits: int = 3) -> int:
    """Count the decimals that show so many significant digits of a number."""
    if not value or not math.isfinite(value):
        return 0
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def significant(value: float, scale: float | None = None, least: int = 1) -> str:
    """Write a number with three significant digits or more, and with `least` decimals or more.

    Where a number stands beside larger ones, the digits are those of ``scale``, the largest of them.
    """
    scale = value if scale is None else scale
    if 0 < abs(scale) < SMALL:
        return f"{value:.3g}"
    return f"{value:.{max(least, decimals(scale))}f}"
