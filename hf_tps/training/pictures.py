"""One look for all pictures that the scripts draw: colours, sizes of text, and how a figure becomes a file."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by people who see few colours, too, and in grey
BLUE, ORANGE, GREEN, RED, GREY = "#3b75af", "#e08214", "#4d9a6a", "#c0504d", "#8c8c8c"
FAINT = "#dfe5ec"
# Points
TITLE, TEXT, SMALL = 11, 9, 7.5
DPI = 150


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """An empty figure of this size in inches, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def without_frame(axes: "Axes") -> None:
    """Take ticks and borders off: a picture or a chart that explains itself."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def frame_label(index: int, seconds: Sequence[float] | None) -> str:
    """When a frame is shown in its video, or its number where the file does not tell."""
    return f"frame {index + 1}" if seconds is None else f"{seconds[index]:.2f} s"


def save_figure(figure: "Figure", path: Path) -> None:
    """Write the figure as a file that is there whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    with whole_file(path) as begun, warnings.catch_warnings():
        # Class names come in all scripts, fonts do not: a box in the picture is enough of a sign.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(begun, dpi=DPI, format=path.suffix.lstrip(".") or "png")
