"""`vlarl report`: a page about runs, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlarl.config import ConfigError
from vlarl.terminal import say
from vlarl_cli.extras import missing_packages
from vlarl_cli.options import one_sentence_errors

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN",
        help="Folders of runs of `vlarl up`, going on or done, or a folder that holds such runs.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="The page, NAME.html; pictures go to the folder NAME beside it. Default: "
        "RUN/report.html; of several runs, comparison.html beside the first.",
    ),
]


def report(runs: Runs, out: Out = None) -> None:
    """Show runs on one HTML page that needs no network: success, dynamics, time, tasks, films.

    One run: with Wilson 95 % intervals. Several: runs that differ in their seed only are drawn as
    their mean and range, other configurations beside one another:

        vlarl report runs/reach-20261126-101500

        vlarl report runs/paper-* runs/frontier-* --out curriculum.html

    Films and benchmark scores come from `vlarl eval --run RUN` with the results beside the run or
    inside it. docs/report.md says how to read the page.
    """
    with one_sentence_errors():
        if missing := missing_packages():
            raise ConfigError(missing)
        if out is not None and out.suffix != ".html":
            raise ConfigError(f"--out {out}: name the page, e.g. {out.with_suffix('.html')}")
        from vlarl_jobs.report.report import write_report

        page, pictures = write_report(runs, out)
        megabytes = page.stat().st_size / 1e6
        say(f"{page}  ({megabytes:.1f} MB; pictures: {pictures})")
