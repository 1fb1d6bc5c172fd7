"""What all figures share: colours, style, and how they are written."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gnnrl_lightning.core.files import write_bytes

# Okabe and Ito's colours, which stay apart for the colour-blind.
BLUE, ORANGE, VERMILLION, GREEN, PURPLE, SKY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
INK, GREY, PALE = "#333333", "#8A8F98", "#E4E7EB"

STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "savefig.dpi": 150,
    # A module's name is shown as it is, even with a dollar sign; the same run gives the same file.
    "text.parse_math": False,
    "svg.hashsalt": "gnnrl_lightning",
}


@dataclass(frozen=True)
class SavedFigure:
    """A figure on disk, and what a page needs to embed it."""

    title: str
    svg: bytes

    @property
    def data_uri(self) -> str:
        """The picture as the `src` of an <img>."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def new_figure(title: str) -> tuple[Figure, Axes]:
    """A figure of one plot under its message."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    figure.suptitle(title, wrap=True)
    return figure, figure.subplots()


def write_figure(figure: Figure, folder: Path, name: str) -> SavedFigure:
    """Writes a figure to `folder` as PNG and SVG."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png")
    write_bytes(folder / f"{name}.svg", svg.getvalue())
    write_bytes(folder / f"{name}.png", png.getvalue())
    return SavedFigure(figure.get_suptitle(), svg.getvalue())


METHODS = (BLUE, VERMILLION, GREEN, PURPLE, SKY, INK)
"""Colours of methods beside each other."""
