"""Sections as one HTML file that needs nothing beside it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from vlarl import __version__
from vlarl_jobs.report.sections import Rate, Section
from vlarl_jobs.report.theme import colour_variables


def render(title: str, sections: Sequence[Section]) -> str:
    """The page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"code": _code, "picture": Markup}
    environment.tests["rate"] = lambda cell: isinstance(cell, Rate)
    here = files("vlarl_jobs.report")
    template = environment.from_string((here / "page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        sections=sections,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        light=Markup(colour_variables(dark=False)),  # noqa: S704 - our own colours
        dark=Markup(colour_variables(dark=True)),  # noqa: S704
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=__version__,
    )


def _code(text: str) -> Markup:
    """Escaped text, with `words in back quotes` as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped
