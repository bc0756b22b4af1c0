"""`vlarl report`, from folders to files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vlarl.config.files import runs_of
from vlarl.files import replace_text
from vlarl_jobs.report.content import sections_of
from vlarl_jobs.report.errors import ReportError
from vlarl_jobs.report.groups import Group, group_runs
from vlarl_jobs.report.page import render
from vlarl_jobs.report.run_folder import read_run


def write_report(folders: Sequence[Path], out: Path | None) -> tuple[Path, Path]:
    """Writes a page about these runs, and its pictures into a folder beside it.

    Args:
        folders: of the runs, or of several runs each.
        out: the page; None: RUN/report.html, of several runs comparison.html beside the first.

    Returns:
        The page and the folder.

    Raises:
        ReportError: a folder can't be reported on, or the page can't be written.
    """
    folders = [run for folder in folders for run in _runs(folder)]
    named = Counter(folder.resolve() for folder in folders)
    for folder, times in named.items():
        if times > 1:
            raise ReportError(f"{folder}: named {times} times; name each run once")
    groups = group_runs([read_run(folder) for folder in folders])
    page = out or _default_page(folders)
    pictures = page.with_suffix("")
    sections = sections_of(groups)
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        for old in pictures.glob("*.png"):
            old.unlink()
        for section in sections:
            for panel in section.panels:
                (pictures / f"{panel.name}.png").write_bytes(panel.png)
        replace_text(page, render(_title(groups), sections))
    except OSError as error:
        raise ReportError(f"{page}: can't be written ({error.strerror}); choose --out") from error
    return page, pictures


def _runs(folder: Path) -> list[Path]:
    """The folder, if it is a run's; otherwise those of the runs in it."""
    return [folder] if (folder / "config.toml").exists() else runs_of(folder) or [folder]


def _default_page(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / "report.html"
    return folders[0].resolve().parent / "comparison.html"


def _title(groups: Sequence[Group]) -> str:
    labels = [group.label for group in groups]
    return labels[0] if len(labels) == 1 else "Comparison of " + " and ".join(labels)
