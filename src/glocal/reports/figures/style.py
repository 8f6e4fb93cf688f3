"""The style of all figures: few lines, and colours for all kinds of colour vision."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

INK, MUTED, HAIRLINE = "#22211f", "#77736b", "#d9d5cc"
# Okabe and Ito 2008, in an order in which neighbours also differ as greys.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GLOBAL, LOCAL = SERIES[:2]  # of heads, in every figure
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
LAST_RESORT = "Last Resort High-Efficiency"
"""matplotlib's own font, which has a box for every character."""
Args = ParamSpec("Args")


def styled(draw: Callable[Args, Figure]) -> Callable[Args, Figure]:
    """Draw in this style, with the ticks, which matplotlib would otherwise make later in another style."""

    @wraps(draw)
    def drawn(*args: Args.args, **kwargs: Args.kwargs) -> Figure:
        with rc_context(STYLE):
            figure = draw(*args, **kwargs)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing from font")
                figure.draw_without_rendering()
            if lend_fonts(figure):
                figure.draw_without_rendering()
        return figure

    return drawn


def lend_fonts(figure: Figure) -> bool:
    """Add installed fonts for characters that the style's font lacks, such as Chinese; return whether any were missing.

    A character that no font has becomes a box, with a warning.
    """
    texts, own = figure.findobj(Text), get_font(findfont(FontProperties())).get_charmap()
    missing = {letter for text in texts for letter in text.get_text() if letter.isprintable()} - set(map(chr, own))
    if not missing:
        return False
    foreign, lenders = [text for text in texts if missing & set(text.get_text())], []
    for font in sorted(fontManager.ttflist, key=preference):
        if known := missing & set(map(chr, get_font(font.fname).get_charmap())):
            if font.name == LAST_RESORT:
                letters = "".join(sorted(known))
                warnings.warn(f"no installed font has {letters}; install one, say Noto Sans CJK", stacklevel=3)
            lenders.append(font.name)
            missing -= known
    for text in foreign:
        text.set_fontfamily([STYLE["font.family"], *lenders])
    return True


def preference(font: FontEntry) -> tuple[bool, ...]:
    """Return a key that sorts plain fonts without serifs first."""
    return font.name == LAST_RESORT, "Sans" not in font.name, font.style != "normal", font.weight != 400


def percent(share: float, _: object) -> str:
    """Return a share in percent, without trailing zeros, for an axis."""
    return f"{100 * share:.6g}%"
