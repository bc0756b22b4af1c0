"""The colours of page and pictures, and how a picture is drawn.

A picture is drawn once, in light colours. As PNG it keeps them; on the page each becomes a
variable of the style sheet, which has another value in the dark scheme. Series are told apart by
colours that are distinct in every common form of colour blindness (after Okabe and Ito).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK, MUTED, GRID, SURFACE = "#1c1f24", "#5c636e", "#e1e4e9", "#fefefd"
BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, GREY = (
    "#0a6ab5",
    "#cf560a",
    "#0b8a6a",
    "#a8558f",
    "#b08400",
    "#7db8e3",
    "#8a8f98",
)
APRICOT, PALE = "#f0a868", "#cdd2d8"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, GREY)
"""Of groups and seeds, in this order, again from the start where there are more."""

_DARK = {
    INK: "#e9eaec",
    MUTED: "#a5abb5",
    GRID: "#31353c",
    SURFACE: "#15171b",
    BLUE: "#58a8e8",
    ORANGE: "#f58d47",
    GREEN: "#3ec29d",
    PURPLE: "#d690c2",
    YELLOW: "#dfb63a",
    SKY: "#2d6ba0",
    GREY: "#8f949d",
    APRICOT: "#a35b20",
    PALE: "#4a4f57",
}
_NAMES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    SURFACE: "surface",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    YELLOW: "yellow",
    SKY: "sky",
    GREY: "grey",
    APRICOT: "apricot",
    PALE: "pale",
}
_SHADES = 11


def _mixed(first: str, second: str, share: float) -> str:
    pairs = ((int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _shades(least: str, most: str) -> list[str]:
    return [_mixed(least, most, step / (_SHADES - 1)) for step in range(_SHADES)]


SHADES = _shades("#eaf1f8", "#07497f")
"""From little to much."""
_NAMES |= {shade: f"shade-{step}" for step, shade in enumerate(SHADES)}
_DARK |= dict(zip(SHADES, _shades("#1d252e", "#9ad0ff"), strict=True))

VARIABLES = {colour: f"var(--{name})" for colour, name in _NAMES.items()}
"""A picture's colour to the page's."""


def colour_variables(*, dark: bool) -> str:
    """The declarations of all colours, for a style sheet."""
    return " ".join(
        f"--{name}: {_DARK[colour] if dark else colour};" for colour, name in _NAMES.items()
    )


PICTURE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": PALE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 1.4,
    "figure.facecolor": SURFACE,
    "savefig.facecolor": SURFACE,
    "figure.dpi": 72,
    "svg.fonttype": "none",
    "svg.hashsalt": "vlarl",
    "path.simplify": True,
    # Labels come from configurations, where a dollar is a dollar.
    "text.parse_math": False,
}
"""matplotlib's settings."""
