"""The whole command: a page that needs nothing beside it, or one sentence that says why not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.unit.report.run_folders import make_run
from vlarl.config import ProcessRewardConfig
from vlarl_cli import app

pytestmark = pytest.mark.torch
VOID = {"meta", "link", "img", "source", "br", "hr"}
ADDRESSES = {"href", "src", "srcset", "poster", "data", "action"}


class Page(HTMLParser):
    """What a page asks for, and whether its tags are balanced."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ADDRESSES]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)


def report(*arguments: object) -> str:
    """Runs the command; returns what it printed."""
    done = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: object) -> str:
    """Runs the command, which must fail; returns its one sentence."""
    done = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), "a traceback"
    return done.output


def check_self_contained(content: str) -> Page:
    page = Page(content)
    assert "script" not in page.tags
    for address in page.addresses:
        assert address.startswith(("#", "data:")), address[:80]
    assert not re.search(r"https?://|file:|@import", content)
    assert set(re.findall(r"url\((.)", content)) <= {"#"}
    assert len(set(page.ids)) == len(page.ids), "an id that two pictures share"
    inner = [address[1:] for address in page.addresses if address.startswith("#")]
    inner += re.findall(r"url\(#([^)]*)\)", content)
    assert set(inner) <= set(page.ids), "a picture refers to what isn't there"
    return page


@pytest.fixture(scope="session")
def shown(run_dir: Path) -> str:
    printed = report(run_dir)
    assert str(run_dir / "report.html") in printed
    return (run_dir / "report.html").read_text()


def test_a_page_needs_nothing_beside_it(shown: str) -> None:
    page = check_self_contained(shown)
    assert page.headings == [
        "Success",
        "How learning went",
        "Success by task",
        "Films",
        "Curriculum",
        "Actions, before and after",
        "Where the time went",
        "Parity and health",
        "Configuration",
    ]
    assert len(shown) < 3e6


def test_a_reward_models_rewards_have_a_section(tmp_path: Path) -> None:
    reward = ProcessRewardConfig(model="rprm", checkpoint=tmp_path, warn_below=0.25)
    run = make_run(tmp_path / "run", config={"reward": reward})
    report(run, make_run(tmp_path / "plain"), "--out", tmp_path / "both.html")
    content = (tmp_path / "both.html").read_text()
    assert check_self_contained(content).headings[2] == "The process reward"
    assert len(list((tmp_path / "both").glob("dense-*"))) == 4
    assert "warns below" in content


def test_a_run_that_went_back_says_from_where_to_where(tmp_path: Path, shown: str) -> None:
    run = make_run(tmp_path / "run", solved={3: 9, 6: 1}, evaluated=(3, 5, 6), returns={5: 3})
    report(run)
    content = (run / "report.html").read_text()
    assert "Returns to the best checkpoint" not in shown
    table = content.partition("Returns to the best checkpoint")[2].partition("</table>")[0]
    # 5 and 9 of 10 of each task; by hand, 10 of 20 and 18 of 20.
    for cell in (
        "after 5 iterations",
        "50 % (30 % to 70 %)",
        "after 3 iterations",
        "90 % (70 % to",
    ):
        assert cell in table
    assert "<td>0.5</td>" in table


def test_a_page_says_from_where_to_where(shown: str) -> None:
    assert "0 % → 60 %" in shown
    assert "after 6 iterations 12 of 20 (39 % to 78 %)" in shown
    assert "60 % (31 % to 83 %)" in shown, "Wilson's interval of 6 of 10"
    assert "10 % → 60 %" in shown, "training's own"
    assert "reach (2 tasks), seed 7; 6 of 6 iterations complete" in shown
    assert "push &lt;b&gt;block 3&lt;/b&gt;" in shown


def test_pictures_lie_beside_the_page(run_dir: Path, shown: str) -> None:
    names = sorted(path.name for path in (run_dir / "report").iterdir())
    assert len(names) == shown.count("<figure><svg")
    assert {"success-steps.png", "entropy.png", "phases-iterations.png"} <= set(names)
    for name in names:
        with Image.open(run_dir / "report" / name) as picture:
            picture.verify()


def test_a_runs_folder_may_have_any_name(run_dir: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(run_dir, tmp_path / 'läufe [1]; it\'s "<b>" #1'))
    shutil.rmtree(odd / "evaluation")
    shown = CliRunner().invoke(app, ["report", str(odd)])
    assert shown.exit_code == 0, shown.output
    assert list((odd / "report").glob("*.png"))
    text = (odd / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in text, "the hint to make films names no folder"
    assert "<b>" not in text


def test_several_runs_are_compared(run_dirs: list[Path], tmp_path: Path) -> None:
    report(*run_dirs, "--out", tmp_path / "compared.html")
    content = (tmp_path / "compared.html").read_text()
    check_self_contained(content)
    assert "Comparison of iterations 6 and iterations 9" in content
    assert "3 runs of 2 configurations" in content
    assert "means over seeds" in content
    assert "60 % (45 % to 74 %)" in content, "both seeds' 24 of 40"
    assert "trainer.iterations" in content
    assert (tmp_path / "compared" / "success-time.png").exists()
    assert not list(tmp_path.glob(".*")), "half a page"
    report(*run_dirs[:2])
    content = (run_dirs[0].parent / "comparison.html").read_text()
    assert "reach (2 tasks), seeds 1, 2;" in content


def test_a_run_of_one_iteration_and_no_more_than_it_must_have(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", iterations=1, tasks=(0,), evaluated=())
    shutil.rmtree(run / "actions")
    (run / "starts.jsonl").unlink()
    (run / "metrics.jsonl").write_text(
        '{"iteration": 0, "policy_version": 1, "env_steps": 8, "episodes": 2, "success_rate": 0, '
        '"logprob_gap": 0, "entropy": NaN, "value_loss": NaN}\n'
    )
    report(run)
    content = (run / "report.html").read_text()
    check_self_contained(content)
    assert "1 of 6 iterations complete" in content
    assert "the run has none" in content, "no word about the actions"
    assert "vlarl eval --run" in content, "no word about films"
    assert "Curriculum" not in content
    assert "Success by task" not in content


def test_what_cannot_be_shown_is_one_sentence(run_dir: Path, tmp_path: Path) -> None:
    assert "there is no such folder" in refused(tmp_path / "none")
    assert "named 2 times" in refused(run_dir, f"{run_dir}/../{run_dir.name}")
    assert "name the page" in refused(run_dir, "--out", tmp_path / "page")
    (tmp_path / "taken").write_text("")
    assert "choose --out" in refused(run_dir, "--out", tmp_path / "taken" / "page.html")


def test_neither_torch_nor_a_service_is_loaded(run_dir: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom vlarl_cli import app\n"
        f"app(['report', {str(run_dir)!r}, '--out', {str(tmp_path / 'page.html')!r}], "
        "standalone_mode=False)\n"
        "heavy = {'torch', 'vllm', 'transformers', 'tensorboard', 'pandas', "
        "'vlarl_policy', 'vlarl_env', 'vlarl_reward', 'vlarl_trainer'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr
