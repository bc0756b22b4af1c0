"""A picture: drawn by matplotlib, then made fit for a page."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vlarl_jobs.report.theme import GREY, PICTURE, VARIABLES

SMALL, NARROW, WIDE = (3.1, 2.1), (4.2, 2.55), (4.7, 2.9)
"""Sizes in inches: four, three or two stand side by side on a desktop, and one on a phone."""
_PNG_DPI = 160
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Panel:
    """A picture in both of its forms."""

    name: str
    """Of its file, and unique on its page."""
    title: str
    svg: str
    """For the page: no colours of its own, no fonts, no addresses."""
    png: bytes


def draw(
    name: str,
    title: str,
    paint: Callable[[Axes], None],
    size: tuple[float, float] = NARROW,
) -> Panel:
    """Draws a picture of one pair of axes.

    Args:
        name: of its file, and unique on its page.
        title: what is shown, with its unit.
        paint: fills the axes.
        size: width and height in inches.
    """
    with mpl.rc_context(PICTURE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        paint(axes)
        return Panel(name, title, _page_svg(figure, name, title), _png(figure))


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return content.getvalue()


def _page_svg(figure: Figure, name: str, title: str) -> str:
    content = io.StringIO()
    figure.savefig(content, format="svg", transparent=True)
    return page_svg(content.getvalue(), name, title)


def page_svg(svg: str, name: str, title: str) -> str:
    """An SVG of matplotlib's as part of a page.

    Colours become the page's, the text takes the page's font, and ids become the picture's own.
    Namespaces and metadata go: a page needs none, and they hold addresses.
    """
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    head, _, body = svg.partition(">")
    (view,) = re.findall(r'viewBox="[^"]*"', head)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(
        r' id="([^"]*)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "",
        body,
    )
    body = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", body)
    body = re.sub(r'font-family: [^;"]*; ', "", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: VARIABLES.get(found[0], found[0]), body)
    return f'<svg {view} role="img" aria-label="{html.escape(title)}">{body}'


def steps_axis(axes: Axes) -> None:
    """The horizontal axis counts control steps of the environment."""
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.set_xlim(left=0)


def iteration_axis(axes: Axes) -> None:
    """The horizontal axis counts iterations."""
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def share_axis(axes: Axes) -> None:
    """The vertical axis is a share, from 0 to 100 %."""
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def decades_axis(axes: Axes) -> None:
    """The vertical axis is logarithmic and shows whole powers of ten."""
    axes.set_yscale("log")
    low, high = axes.dataLim.intervaly
    if not 0 < low <= high < math.inf:  # no point has a value
        low, high = 1e-7, 1e-5
    # A fifth of a decade, at least, between a point and the edge.
    least, most = math.floor(math.log10(low) - 0.2), math.ceil(math.log10(high) + 0.2)
    axes.set_ylim(10.0**least, 10.0**most)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def _power(value: float) -> str:
    return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPTS)


def bound_line(axes: Axes, bound: float, says: str) -> None:
    """A dashed line at a height, and what it means."""
    axes.axhline(bound, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        says,
        (1, bound),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=7.5,
        color=GREY,
    )


def legend_below(axes: Axes, columns: int = 3) -> None:
    """A legend that hides nothing."""
    axes.figure.legend(loc="outside lower center", ncols=columns, handleheight=0.9)


def short_number(value: float) -> str:
    """A count in few characters: 950, 2.5k, 1.2M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:g}"
