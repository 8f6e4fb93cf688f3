"""The one style of all pictures: little ink, and colours that every eye tells apart."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from matplotlib import rc_context
from matplotlib.figure import Figure

INK, MUTED, HAIRLINE = "#22211f", "#77736b", "#d9d5cc"
# Okabe and Ito 2008, in an order that keeps neighbours apart in grey print as well.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE: Any = {
    "figure.dpi": 200,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$"
    "axes.facecolor": "none",
    "axes.edgecolor": HAIRLINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titlepad": 8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.5,
    "xtick.color": HAIRLINE,
    "xtick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.color": HAIRLINE,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
Args = ParamSpec("Args")


def styled(draw: Callable[Args, Figure]) -> Callable[Args, Figure]:
    """Draw in this style, ticks included, which matplotlib would else make later in whatever style holds."""

    @wraps(draw)
    def drawn(*args: Args.args, **kwargs: Args.kwargs) -> Figure:
        with rc_context(STYLE):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
        return figure

    return drawn
