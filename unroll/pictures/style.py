"""How a picture looks, and how it becomes a file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from unroll.files import write_whole

# Okabe and Ito 2008: colours that the colour-blind tell apart.
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
RED = "#D55E00"
GREY = "#777777"
# For rows of a comparison. The yellow of Okabe and Ito cannot be seen on white.
PALETTE = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#000000", GREY)
DENSITY = "cividis"  # Nuñez, Anderton and Renslow 2018: from dark to bright for every eye

DPI = 100
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


@contextlib.contextmanager
def picture(path: Path, width: int, height: int) -> Iterator[Figure]:
    """Give a figure of so many pixels to draw in, and write it to ``path`` (.png) at the end, whole or not at all."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        yield figure
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI)
    write_whole(path, file.getvalue())
