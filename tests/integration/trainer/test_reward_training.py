"""Runs of `vlarl reward train`: what a judge learns, what it leaves behind, and its mistakes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from typer.testing import CliRunner  # noqa: E402

from tests.integration.trainer.demonstrated import (  # noqa: E402
    CAPTURE,
    merged,
    square_frame,
    task_samples,
    write_dataset,
)
from vlarl.config import RewardModelConfig, dump_toml  # noqa: E402
from vlarl.data.dataset import (  # noqa: E402
    DatasetError,
    Frames,
    Motion,
    TaskSamples,
    read_dataset,
    write_task,
)
from vlarl.images import encode_jpeg  # noqa: E402
from vlarl.json_lines import read_lines  # noqa: E402
from vlarl.models.openvla.tokens import ActionTokenizer  # noqa: E402
from vlarl.models.process_reward.model import ProcessRewardModel  # noqa: E402
from vlarl_cli import app  # noqa: E402
from vlarl_jobs.reward_model.card import probabilities  # noqa: E402
from vlarl_jobs.reward_model.main import run  # noqa: E402
from vlarl_jobs.reward_model.measures import auc  # noqa: E402
from vlarl_jobs.reward_model.reading import ROLLOUT, read_labelled  # noqa: E402
from vlarl_jobs.reward_model.scoring import fit_returns, score_rollouts  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def demonstrations(episodes: int = 12, steps: int = 6) -> TaskSamples:
    """A square goes down the frame; only the last second of each episode leads to the end."""
    few = task_samples(suite="libero_spatial", episodes=episodes, length=steps)
    rows = np.tile(np.linspace(0, 1, steps), episodes)
    places = np.stack([rows, np.full_like(rows, 0.5)], axis=1)
    control = 10 * steps
    return replace(
        few,
        frames=Frames.of([encode_jpeg(square_frame(place)) for place in places]),
        actions=np.tile(np.array([0.9, -0.9, 0.5, 0, 0, 0, 1], np.float32), (len(rows), 1)),
        motion=Motion(
            hand=np.tile(np.linspace(0, 1, control, dtype=np.float32)[:, None], (episodes, 3)),
            opening=np.full(episodes * control, 0.08, np.float32),
            offsets=np.arange(episodes + 1) * control,
            starts=np.tile(np.arange(0, control, 10, dtype=np.int32), episodes),
        ),
        placements=np.repeat(np.arange(episodes) + 100, steps),
    )


def failures(succeeded: list[bool]) -> TaskSamples:
    """Episodes of 8 steps; their actions are held for 4 control steps."""
    few = task_samples(suite="libero_spatial", episodes=len(succeeded), length=8)
    return replace(
        few,
        placements=np.repeat(np.arange(len(succeeded)) + 500, 8),
        succeeded=np.repeat(succeeded, 8),
        motion=None,
    )


def config_for(checkpoint: Path, *datasets: Path, **changes: object) -> RewardModelConfig:
    values: dict[str, object] = {
        "name": "run",
        "seed": 3,
        "threads": 1,
        "checkpoint": checkpoint,
        "data": {"datasets": list(datasets), "held_out": 0.25},
        "augmentation": {"random_crop": False, "brightness": 0, "contrast": 0}
        | {"saturation": 0, "hue": 0},
        "training": {
            "steps": 80,
            "mini_batch": 24,
            "micro_batch": 24,
            "learning_rate": 3e-3,
            "evaluate_every": 40,
        },
    }
    return RewardModelConfig.model_validate(merged(values, changes))


def train(config: RewardModelConfig, run_dir: Path) -> None:
    run_dir.mkdir(exist_ok=True)
    run(config, run_dir)


def test_what_is_learned_from_and_what_is_held_out(checkpoint: Path, tmp_path: Path) -> None:
    shown = write_dataset(tmp_path / "shown", demonstrations())
    failed = write_dataset(tmp_path / "failed", failures([True, False, False]))
    labelled = read_labelled(config_for(checkpoint, shown, failed, data={"tail_seconds": 0.6}))
    # Two of six actions are in the last second; of each failure the last 0.6 s are three actions,
    # of the success the last second are five.
    everything = np.concatenate([labelled.train.labels, labelled.all_held_out.labels])
    assert len(everything) == 12 * 6 + 2 * 3 + 5
    assert everything.sum() == 12 * 2 + 5
    assert labelled.tasks == ("libero_spatial 0",)
    assert set(labelled.segment.tolist()) <= {0, ROLLOUT}
    assert len(labelled.all_held_out) % 6 in (0, 3, 5, 2), "episodes are held out whole"
    assert 0 < len(labelled.all_held_out) < len(labelled.train)


def test_a_placement_is_held_out_wherever_it_comes(checkpoint: Path, tmp_path: Path) -> None:
    """Each row of the square's episodes shows which placement a sample is of."""
    marked = demonstrations()
    assert marked.placements is not None
    poses = np.stack([marked.placements, marked.placements], axis=1).astype(np.float32)
    marked = replace(marked, poses=poses)
    one = write_dataset(tmp_path / "one", marked)
    half = write_dataset(tmp_path / "half", marked.only(marked.episodes < 6))
    both = read_labelled(config_for(checkpoint, one, half, data={"held_out": 0.4}))
    learned, away = (set(s.poses[:, 0]) for s in (both.train, both.all_held_out))
    assert learned
    assert away
    assert not learned & away


def test_a_judge_learns_what_leads_on_and_comes_with_a_card(
    checkpoint: Path, tmp_path: Path
) -> None:
    shown = write_dataset(tmp_path / "shown", demonstrations())
    config = config_for(checkpoint, shown)
    train(config, tmp_path / "run")
    made = tmp_path / "run/checkpoint"
    card = json.loads((made / "reward_model.json").read_text())
    assert card["held_out"]["auc"] > 0.9
    assert card["held_out"]["samples"] == card["by_task"]["libero_spatial 0"]["samples"]
    assert len(card["version"]) == 12
    assert card["config"]["seed"] == 3
    page = (made / "README.md").read_text()
    assert f"| libero_spatial 0 | {card['held_out']['samples']} |" in page
    assert (made / "reliability.png").stat().st_size > 2000
    assert not (tmp_path / "run/weights").exists()
    # The card's numbers are those of the checkpoint that lies beside it.
    labelled = read_labelled(config)
    scores = probabilities(ProcessRewardModel(made), labelled.all_held_out)
    assert float(scores.mean()) == pytest.approx(card["held_out"]["mean_score"], abs=1e-4)
    lines = list(read_lines(tmp_path / "run/metrics.jsonl"))
    assert [line["step"] for line in lines if "held_out_auc" in line] == [40, 80]
    # It looks at the action, too: turned round, it leads nowhere.
    held_out = labelled.all_held_out
    right = held_out.labels == 1
    first_and_last = 512 + 767
    held_out.token_ids[:, :3] = first_and_last - held_out.token_ids[:, :3]
    turned = probabilities(ProcessRewardModel(made), held_out)
    assert turned[right].mean() < scores[right].mean() - 0.2


def test_episodes_are_judged_by_their_mean(checkpoint: Path, tmp_path: Path) -> None:
    made = tmp_path / "judge"
    shutil.copytree(checkpoint, made)
    (made / "reward_model.json").write_text('{"version": "abc"}')
    folder = tmp_path / "rollouts"
    write_dataset(folder, failures([True, False, False, True]))
    write_task(folder, CAPTURE, failures([False, True]), "00001")
    judge = ProcessRewardModel(made)
    (task,) = score_rollouts(judge, [(folder, read_dataset(folder))])
    assert task.name == "libero_spatial 0"
    assert task.succeeded.tolist() == [False, True, True, False, False, True]
    # The first part comes last by name; its first episode's steps, one by one.
    tokenizer = ActionTokenizer(judge.config.action_ids.stop)
    stats = judge.config.statistics("libero_spatial")
    few = failures([True, False, False, True])
    said = [
        judge.probabilities(
            judge.frame(few.frames[step])[None],
            [judge.prompt(few.instruction)],
            tokenizer.encode(stats.normalize(few.actions[step]))[None],
        )[0]
        for step in range(8)
    ]
    assert task.scores[2] == pytest.approx(np.mean(said), abs=1e-6)
    # Of states, before any token of their actions.
    (states,) = score_rollouts(judge, [(folder, read_dataset(folder))], of_states=True)
    seen = judge.probabilities(
        judge.frame(few.frames[0])[None], [judge.prompt(few.instruction)], np.zeros((1, 0), int)
    )
    assert states.episodes[2][0] == pytest.approx(seen[0], abs=1e-6)
    picture = tmp_path / "judged.png"
    output = CliRunner(env={"COLUMNS": "120"}).invoke(
        app, ["reward", "judge", str(made), str(folder), "--plot", str(picture)]
    )
    assert output.exit_code == 0, output.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "reward model abc" in output.output
    assert f"{task.auc:.3f}" in output.output
    first = auc(np.array([steps[0] for steps in task.episodes]), task.succeeded)
    assert f"{first:.3f}" in output.output.split("will succeed")[1]
    fit = fit_returns(states, 0.9)
    assert fit is not None
    output = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["reward", "judge", str(made), str(folder), "--states", "--gamma", "0.9"]
    )
    assert f"by 0.9, with reward.coefficient = {fit.coefficient:.2f}" in output.output
    shown = write_dataset(tmp_path / "shown", demonstrations())
    refused = CliRunner().invoke(app, ["reward", "judge", str(made), str(shown)])
    assert refused.exit_code == 1
    assert "holds demonstrations, not rollouts" in refused.output


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_run_that_stopped_goes_on_to_the_same_end(
    checkpoint: Path, tmp_path: Path, mode: str
) -> None:
    shown = write_dataset(tmp_path / "shown", demonstrations(episodes=6))
    fit = {"steps": 4, "mini_batch": 8, "micro_batch": 4, "evaluate_every": 2}
    whole = config_for(checkpoint, shown, mode=mode, training=fit, export="last")
    half = config_for(checkpoint, shown, mode=mode, training=fit | {"steps": 2}, export="last")
    train(whole, tmp_path / "whole")
    train(half, tmp_path / "begun")
    train(whole, tmp_path / "begun")
    cards = [
        json.loads((tmp_path / name / "checkpoint/reward_model.json").read_text())
        for name in ("whole", "begun")
    ]
    assert cards[0] == cards[1]


def test_what_is_wrong_is_said_in_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    official = failures([False, False])
    official = replace(official, placements=np.repeat(np.array([-1, -2]), 8))
    folder = write_dataset(tmp_path / "official", official)
    with pytest.raises(DatasetError, match="official initial states, which are kept for judging"):
        read_labelled(config_for(checkpoint, folder))
    only_failures = write_dataset(tmp_path / "failed", failures([False, False]))
    with pytest.raises(DatasetError, match="no positive sample"):
        read_labelled(config_for(checkpoint, only_failures))
    bare = write_dataset(tmp_path / "bare", replace(demonstrations(), motion=None))
    with pytest.raises(DatasetError, match="libero_spatial task 0 has no motion"):
        read_labelled(config_for(checkpoint, bare))
    (tmp_path / "c.toml").write_text(dump_toml(config_for(checkpoint, tmp_path / "none")))
    arguments = ["reward", "train", str(tmp_path / "c.toml"), "--run-dir", str(tmp_path / "run")]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "no dataset here" in refused.output
    assert not (tmp_path / "run").exists()
