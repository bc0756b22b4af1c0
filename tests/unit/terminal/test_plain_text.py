"""No text that comes from elsewhere is markup: what is printed has all its brackets."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.table import Table
from typer.testing import CliRunner

from tests.roots import PYTHONPATH
from vlarl.queue.backlog import Backlog
from vlarl.terminal import PlainConsole, complain, say, show, track, waiting
from vlarl.trainer.v1 import trainer_pb2
from vlarl_cli import app
from vlarl_cli.overview import Overview, Replica

ROOT = Path(__file__).parents[3]
NASTY = "[/red] [bold] [x] :warning:"
"""A closing tag that closes nothing ends rich's own markup with an error."""


def test_a_line_has_its_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    say(("error:", "red"), f" {NASTY}")
    complain(NASTY)
    captured = capsys.readouterr()
    assert captured.out == f"error: {NASTY}\n"
    assert captured.err == f"error: {NASTY}\n"


def test_a_table_has_its_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("task", NASTY, title=NASTY, caption=NASTY)
    table.add_row("1", NASTY)
    show(table)
    assert capsys.readouterr().out.count(NASTY) == 4


def test_bars_and_spinners_take_any_text(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting(NASTY):
        assert list(track([1, 2], "counting")) == [1, 2]


def test_control_characters_command_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("\x1b]0;title\x07 \x1b[2J \x9b2J \r one\ttwo")
    assert capsys.readouterr().out.startswith(r"\x1b]0;title\x07 \x1b[2J \x9b2J \x0d one")


def test_a_long_line_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    say("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


def test_the_status_page_shows_what_services_say(capsys: pytest.CaptureFixture[str]) -> None:
    from vlarl_cli.status import _page

    replica = Replica("policy", NASTY, True, NASTY)
    run = trainer_pb2.GetStatusResponse(run_id=NASTY, iterations=3)
    PlainConsole().print(_page(Overview(run, (replica,), None, NASTY)))
    PlainConsole().print(_page(Overview(None, (replica,), Backlog({NASTY: 1}, {NASTY: 2}, 3))))
    assert capsys.readouterr().out.count(NASTY) == 7


@pytest.mark.torch
def test_the_trainers_displays(capsys: pytest.CaptureFixture[str]) -> None:
    from vlarl.config import RunConfig
    from vlarl.env.v1 import env_pb2
    from vlarl.learning.stage_console import StageDisplay
    from vlarl_jobs.evaluation.console import EvaluationDisplay
    from vlarl_trainer.record.console import Display
    from vlarl_trainer.record.evaluation import EpisodeResult, Evaluation, TaskScore

    scores = Evaluation(0, 1, 2, {0: TaskScore(NASTY, 1, 2, 3, missing=1)})
    display = Display(NASTY, iterations=3, done=0)
    display.phase(NASTY)
    display.evaluation(scores)
    display.finish(Path(NASTY))
    shown = EvaluationDisplay([env_pb2.TaskDescription()], RunConfig(), Path(NASTY), NASTY, NASTY)
    shown.start(0, 1)
    shown.episode(EpisodeResult(0, 0, NASTY, True, 1, 1.0, 0, ""))
    shown.finish(scores)
    stage = StageDisplay(NASTY, steps=1, done=0)
    stage.line(1, {"loss": 1.0, "samples_per_second": 1.0})
    stage.success(1, {"success_rate": 1.0})
    stage.close()
    # Twice in tables, twice as a folder (no TensorBoard is there), twice as one to go on with, the
    # protocol, two stages.
    assert capsys.readouterr().out.count(NASTY) == 2 + 2 + 2 + 1 + 2


def test_bars_of_demonstrations(capsys: pytest.CaptureFixture[str]) -> None:
    from vlarl_jobs.demonstrations.console import TaskBars

    with TaskBars([(NASTY, 1)]) as bars:
        bars.show(NASTY, 1)
    assert NASTY in capsys.readouterr().err


def test_lines_of_demonstrations_where_nobody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlarl_jobs.demonstrations import console

    now = 1000.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.TaskBars([("object 3", 20), ("object 4", 20)]) as bars:
        bars.show("object 3", 10)  # done before
        for done, at in ((11, 1031.0), (12, 1041.0), (13, 1071.0)):
            now = at
            bars.show("object 3", done)
        lines = capsys.readouterr().err.splitlines()
    # Two more episodes took 40 s, 27 are left.
    assert lines[:2] == ["11 of 40 episodes", "13 of 40 episodes  ETA 9:00"]


def test_help_has_its_brackets() -> None:
    told = CliRunner().invoke(app, ["reward", "label", "--help"]).output
    assert "those of [labels] in" in " ".join(told.split())


def test_a_users_brackets_come_back() -> None:
    refused = CliRunner().invoke(app, ["config", "show", "--set", f"trainer.iterations={NASTY}"])
    assert NASTY in refused.output


def names_used(module: ast.Module) -> Iterator[str]:
    """Names, attributes and imports of a module."""
    for node in ast.walk(module):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name


def test_only_one_module_makes_consoles() -> None:
    """Elsewhere nobody has a console, a column or a way to print that knows markup."""
    forbidden = {"Console", "TextColumn", "from_markup", "render_markup", "echo", "secho"}
    found = []
    for folder in ("vlarl", "vlarl_cli", "vlarl_jobs", "services", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path == ROOT / "vlarl/terminal.py" or path.name.endswith(("_pb2.py", "_grpc.py")):
                continue
            module = ast.parse(path.read_text(encoding="utf-8"))
            found += [(str(path), name) for name in names_used(module) if name in forbidden]
            if "rich.progress" not in path.read_text(encoding="utf-8"):
                continue
            for node in ast.walk(module):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Progress":
                    given = {one.arg for one in node.keywords}
                    assert "console" in given, f"{path}: a bar on a console of rich's own"
    assert found == []


def on_a_terminal(width: int, table: Table) -> str:
    console = PlainConsole()
    console.file = io.StringIO()
    console._force_terminal = True
    console.width = width
    from vlarl.terminal import Whole

    console.print(Whole(table))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [1, 20, 60])
def test_a_narrow_terminal_loses_nothing(width: int) -> None:
    table = Table("n", "instruction", "success", "interval")
    words = ["put", "the", "bowl", "on", "the", "plate", "100.0%", "92.1%", "99.9%"]
    table.add_row("17", " ".join(words[:6]), words[6], f"{words[7]} to {words[8]}")
    shown = on_a_terminal(width, table)
    assert all(word in shown for word in (*words, "17", "instruction", "success", "interval"))
    assert "…" not in shown


ENCODINGS = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "no UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "C": {"LC_ALL": "C"},
}
EVERY_HELP = """
import sys
import typer
from vlarl_cli import app, main

def commands(command, path):
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, [*path, name])

for path, command in commands(typer.main.get_command(app), []):
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    print("#", *path, *(name for one in shown for name in one.opts if name[:1] == "-"))
    if path[:1] == ["demos"] and path[1:]:  # become programs of the simulator's environment
        print(command.get_help(command.make_context("", [], resilient_parsing=True)))
        continue
    sys.argv = ["vlarl", *path, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""
COMMANDS = [
    "config reference",
    "config show",
    "config show configs/reach.toml",
    "config show configs/none-→-[/red].toml",
    "config show --set trainer.lora.ränk=→",
    "checkpoint show policies/→",
    "report runs/→-none",
    "status runs/–-none",
    "eval --suite → --tasks [/red]",
    "health 127.0.0.1:1 --timeout-seconds 0.1",
    "act --image docs/pictures/reach-return.png --instruction → --address 127.0.0.1:1 "
    "--timeout-seconds 0.1",
    "sft configs/→.toml",
    "ablate configs/→.toml",
    "up --resume runs/→",
]
EVERY_COMMAND = """
import sys
from vlarl_cli import main

for line in sys.stdin.buffer.read().decode().splitlines():
    sys.argv = ["vlarl", *line.split()]
    print("#", ascii(line), flush=True)
    try:
        main()
    except SystemExit:
        sys.stderr.flush()
"""


def run_vlarl(
    environment: dict[str, str], *arguments: str, said: str = ""
) -> subprocess.CompletedProcess[bytes]:
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env={**plain, "COLUMNS": "20", "PYTHONPATH": PYTHONPATH, **environment},
        input=said.encode(),
        capture_output=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize("environment", ENCODINGS.values(), ids=ENCODINGS)
def test_every_encoding_and_width_takes_all_help(environment: dict[str, str]) -> None:
    done = run_vlarl(environment, "-c", EVERY_HELP)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    pages = done.stdout.decode(errors="replace").split("\n# ")
    assert len(pages) > 25
    for page in pages:
        head, _, told = page.partition("\n")
        options = [word for word in head.split() if word.startswith("-")]
        assert all(option in told for option in options), head


@pytest.mark.parametrize("environment", ENCODINGS.values(), ids=ENCODINGS)
def test_every_encoding_takes_what_commands_say(environment: dict[str, str]) -> None:
    done = run_vlarl(environment, "-c", EVERY_COMMAND, said="\n".join(COMMANDS))
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout.count(b"# '") == len(COMMANDS)
    assert b"Traceback" not in done.stderr


def test_what_an_encoding_lacks_is_readable() -> None:
    code = "from vlarl.terminal import *; use_lookalikes(); say('a – b → ü 碗 ✓ [/red] \\udcff')"
    done = run_vlarl({"PYTHONIOENCODING": "ascii"}, "-c", code)
    assert done.stdout == rb"a - b -> \xfc \u7897 + [/red] \udcff" + b"\n"
    done = run_vlarl({"PYTHONIOENCODING": "utf-8"}, "-c", code)
    assert done.stdout == "a – b → ü 碗 ✓ [/red] \\udcff\n".encode()


def test_the_version_is_that_of_the_package() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"vlarl {version('vlarl')}\n")
