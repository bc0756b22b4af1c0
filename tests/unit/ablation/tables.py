"""Small tables of ablations, and a stand-in for `vlarl up` that takes no time."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.unit.report.run_folders import make_run
from vlarl.config import AblationConfig, load_section
from vlarl_jobs.ablation.plan import Ablation, make_plan

BASE = """
[tasks]
suite = "reach"
[trainer]
iterations = 6
[policy]
checkpoint = "{checkpoint}"
"""
TABLE = """
name = "small"
base = "base.toml"
seeds = [7, 8]
last_iterations = 2
[variants.full]
[variants.hot]
trainer.temperature = 2.0
[variants.fast]
trainer.ppo.learning_rate = 1e-3
"""

STAND_IN = """
import pathlib, shutil, sys
made, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3])
assert sys.argv[2] == "--resume", sys.argv
with (made / "journal").open("a") as journal:
    print(folder.name, file=journal)
print("learning")
if not (made / folder.name).exists():
    sys.exit("out of memory")
for file in (made / folder.name).glob("*.jsonl"):
    shutil.copy(file, folder)
"""
"""Does what a made run of that name did; fails where there is none."""


def write_table(folder: Path, further: str = "") -> Path:
    """A table's file, its base, and the checkpoint that this names."""
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "base.toml").write_text(BASE.format(checkpoint=folder / "checkpoint"))
    file = folder / "small.toml"
    file.write_text(TABLE + further)
    return file


def plan_in(folder: Path, further: str = "") -> Ablation:
    """The table's runs, in OUT `folder`/out."""
    file = write_table(folder, further)
    return make_plan(load_section(AblationConfig, file), file, folder / "out")


def stand_in(made: Path) -> list[str]:
    """The command that takes `vlarl up`'s place; `made` has what the runs come to."""
    return [sys.executable, "-c", STAND_IN, str(made)]


def make_all(ablation: Ablation, made: Path, ends: dict[str, int]) -> None:
    """What these runs come to: 2 of 10 greedy episodes at first, at the end as many as given."""
    made.mkdir()
    for run in ablation.runs:
        if run.name in ends:
            make_run(made / run.name, tasks=(0,), solved={0: 2, 6: ends[run.name]})


def journal(made: Path) -> list[str]:
    """The runs that were started, in order."""
    return (made / "journal").read_text().split()
