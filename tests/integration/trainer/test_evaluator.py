"""The evaluator over a real queue and real gRPC, with stand-ins for engine and simulator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from tests.conftest import Valkey  # noqa: E402
from tests.integration.trainer.checkpointed import newest  # noqa: E402
from tests.integration.trainer.stand_ins import StandInPolicy, serving, working  # noqa: E402
from tests.integration.trainer.trainer_samples import trainer_config  # noqa: E402
from vlarl.config import (  # noqa: E402
    ConfigError,
    EvaluationConfig,
    PolicyConfig,
    QueueConfig,
    RunConfig,
    TasksConfig,
    save_config,
)
from vlarl.config.resuming import terms  # noqa: E402
from vlarl.data.dataset import read_dataset  # noqa: E402
from vlarl.data.recording import RolloutRecorder  # noqa: E402
from vlarl.env.v1 import env_pb2  # noqa: E402
from vlarl.images import decode_image, encode_jpeg  # noqa: E402
from vlarl.learning.checkpoints import ResumeError  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl.queue.rollout_queue import RolloutQueue  # noqa: E402
from vlarl.weights.checkpoint import base_digest  # noqa: E402
from vlarl_cli import app  # noqa: E402
from vlarl_jobs.evaluation.console import EvaluationDisplay  # noqa: E402
from vlarl_jobs.evaluation.evaluated_policy import load_evaluated_policy  # noqa: E402
from vlarl_jobs.evaluation.evaluator import Evaluator, protocol_of  # noqa: E402
from vlarl_jobs.evaluation.film import FilmMaker  # noqa: E402
from vlarl_jobs.evaluation.folder import RUN_ID, EvaluationFolder  # noqa: E402
from vlarl_jobs.evaluation.main import critic_of  # noqa: E402
from vlarl_trainer.learner import Learner  # noqa: E402
from vlarl_trainer.record.evaluation import (  # noqa: E402
    EpisodeResult,
    Evaluation,
    EvaluationLog,
    count,
)
from vlarl_trainer.record.progress import Progress, run_checkpoints  # noqa: E402

pytestmark = pytest.mark.torch
TASKS = [env_pb2.TaskDescription(name="reach", max_control_steps=60)]


def config_for(checkpoint: Path, **changes: object) -> RunConfig:
    return RunConfig(
        name="evaluation",
        unnorm_key="libero_spatial",
        tasks=TasksConfig(indices=(0, 2)),
        evaluation=EvaluationConfig(episodes_per_task=3),
        policy=PolicyConfig(checkpoint=checkpoint),
        trainer=trainer_config(rollout_timeout_seconds=240.0),
    ).model_copy(update=changes)


def trained_run(run_dir: Path, checkpoint: Path, version: int = 5, digest: str = "") -> Path:
    """A run's checkpoint with factors that change the policy."""
    ranks = Ranks.from_environment()
    learner = Learner(checkpoint, trainer_config(), center_crop=False, seed=3, ranks=ranks)
    tensors = learner.snapshot().tensors
    for name, tensor in tensors.items():
        if name.startswith("policy.") and name.endswith(".B"):
            tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    tensors["critic.3.bias"].fill_(0.25)
    progress = Progress(
        run_id="run",
        base_digest=digest or base_digest(checkpoint),
        iteration=3,
        version=version,
        env_steps=400,
    )
    return run_checkpoints(run_dir).save(progress.iteration, progress, tensors, keep=2)


async def evaluate(
    config: RunConfig,
    out: Path,
    valkey: Valkey,
    trained: Path | None = None,
    videos: int = 0,
    record: bool = False,
    give_up: frozenset[str] = frozenset(),
) -> tuple[Evaluation, list[str]]:
    """An evaluation on a queue and policy of its own; also the episodes that were run for it."""
    policy = StandInPolicy(config.policy.checkpoint)
    film = FilmMaker(out / "videos", videos, config.env.action_repeat) if videos else None
    recorder = RolloutRecorder(out / "rollouts", config.env) if record else None
    async with (
        RolloutQueue(QueueConfig(url=valkey.url)) as queue,
        serving(policy) as address,
        working(queue, policy, give_up) as ran,
    ):
        section = config.policy.model_copy(update={"addresses": address})
        here = config.model_copy(update={"policy": section})
        subject = load_evaluated_policy(here, trained)
        folder = EvaluationFolder(out, protocol_of(here, subject, {}))
        display = EvaluationDisplay(TASKS, here, out, "LIBERO's", "AGAIN")
        evaluator = Evaluator(here, subject, folder, film, display, recorder)
        evaluation = await evaluator.run(queue)
        assert all(state.length == 0 for state in await queue.states())
    return evaluation, ran


def rows(out: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    for row in found:
        row.pop("seconds")
    return sorted(found, key=lambda row: (row["task"], row["init_state"]))


async def test_two_evaluations_give_the_same_episodes(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    config = config_for(checkpoint)
    first, ran = await evaluate(config, tmp_path / "a", valkey)
    second, _ = await evaluate(config, tmp_path / "b", valkey)
    assert len(ran) == first.total.episodes == 6
    assert first == second
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    written = json.loads((tmp_path / "a/evaluation.json").read_text())
    assert (written["complete"], written["ended"]) == (True, True)
    assert written["total"]["successes"] == first.total.successes
    assert {row["policy_version"] for row in rows(tmp_path / "a")} == {0}


async def test_a_begun_evaluation_is_gone_on_with(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    whole, _ = await evaluate(config_for(checkpoint), tmp_path / "whole", valkey)
    out = tmp_path / "begun"
    fewer = config_for(checkpoint, evaluation=EvaluationConfig(episodes_per_task=2))
    await evaluate(fewer, out, valkey)
    before = (out / "episodes.jsonl").read_text()
    evaluation, ran = await evaluate(config_for(checkpoint), out, valkey)
    assert [name.rpartition(":")[2] for name in ran] == ["000-02", "002-02"]
    assert (out / "episodes.jsonl").read_text().startswith(before)
    assert evaluation == whole
    assert rows(out) == rows(tmp_path / "whole")
    again, ran = await evaluate(config_for(checkpoint), out, valkey)
    assert (again, ran) == (whole, [])


async def test_a_runs_policy_is_served_and_named(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    config = config_for(checkpoint)
    await evaluate(config, tmp_path / "base", valkey)
    path = trained_run(tmp_path / "run", checkpoint)
    latest, _ = await evaluate(config, tmp_path / "latest", valkey, trained=tmp_path / "run")
    named, _ = await evaluate(config, tmp_path / "named", valkey, trained=path)
    assert latest == named
    assert (latest.policy_version, latest.iteration, latest.env_steps) == (5, 3, 400)
    base, trained = rows(tmp_path / "base"), rows(tmp_path / "latest")
    assert {row["policy_version"] for row in trained} == {5}
    for before, after in zip(base, trained, strict=True):
        assert before["digest"] != after["digest"], "the adapter changed nothing"
    with pytest.raises(ConfigError, match="choose another --out"):
        await evaluate(config, tmp_path / "base", valkey, trained=path)


async def test_an_exported_policy_acts_as_the_runs_does(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    """The last checkpoint's policy, and the best's, which is the one before."""
    config = config_for(checkpoint)
    path = trained_run(tmp_path / "run", checkpoint)
    save_config(config, tmp_path / "run")
    progress, tensors = newest(tmp_path / "run")
    further = {key: 2 * one if key.endswith(".B") else one for key, one in tensors.items()}
    last = replace(progress, iteration=4, version=6)
    run_checkpoints(tmp_path / "run").save(4, last, further, keep=2)
    log = EvaluationLog(tmp_path / "run")
    for stood, success in ((progress, True), (last, False)):
        log.write(count([EpisodeResult(0, 0, "", success, 1, 1.0, 1, "")], stood, []), 1.0)
    acted = {}
    for name, arguments in (("last", []), ("best", ["--best"])):
        out = tmp_path / name
        command = ["checkpoint", "export", str(tmp_path / "run"), str(out), *arguments]
        made = CliRunner().invoke(app, command)
        assert made.exit_code == 0, made.output
        served = config_for(out)
        await evaluate(served, tmp_path / f"{name}-exported", valkey)
        acted[name] = [row["digest"] for row in rows(tmp_path / f"{name}-exported")]
    assert "version 5" in made.output
    for name, trained in (("last", tmp_path / "run"), ("best", path)):
        await evaluate(config, tmp_path / f"{name}-run", valkey, trained=trained)
        assert acted[name] == [row["digest"] for row in rows(tmp_path / f"{name}-run")]
    assert acted["last"] != acted["best"]
    again = CliRunner().invoke(app, ["checkpoint", "export", str(path), str(tmp_path / "best")])
    assert again.exit_code == 2
    assert "exists and is no empty folder" in again.output


async def test_given_up_episodes_count_as_failed_and_come_again(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    config, out = config_for(checkpoint), tmp_path / "out"
    gone = frozenset({"evaluation:evaluation-00000:002-01"})
    evaluation, _ = await evaluate(config, out, valkey, give_up=gone)
    assert (evaluation.missing, evaluation.total.episodes) == (1, 6)
    score = json.loads((out / "evaluation.json").read_text())
    assert (score["complete"], score["ended"]) == (False, True)
    assert (score["missing"], score["tasks"]["2"]["missing"]) == (1, 1)
    assert score["total"]["success_rate"] == evaluation.total.successes / 6
    valkey.kill()
    (valkey.directory / "files").rename(valkey.directory / "old")
    valkey.start()
    evaluation, ran = await evaluate(config, out, valkey)
    assert ran == list(gone)
    assert (evaluation.missing, evaluation.total.episodes) == (0, 6)


async def test_filmed_episodes_have_frames_and_rewards(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    evaluation, _ = await evaluate(config_for(checkpoint), tmp_path, valkey, videos=1)
    ends = [path.stem.split("_")[-1] for path in (tmp_path / "videos").glob("*.mp4")]
    assert ends.count("success") == sum(s.successes > 0 for s in evaluation.tasks.values())
    assert ends.count("failure") == sum(s.successes < 3 for s in evaluation.tasks.values())


async def test_recorded_episodes_are_a_dataset_that_knows_its_failures(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    fewer = config_for(checkpoint, evaluation=EvaluationConfig(episodes_per_task=1))
    await evaluate(fewer, tmp_path, valkey, record=True)
    await evaluate(config_for(checkpoint), tmp_path, valkey, record=True)
    dataset = read_dataset(tmp_path / "rollouts")
    assert dataset.capture.action_repeat == fewer.env.action_repeat
    recorded = sorted(dataset.tasks, key=lambda task: (task.index, -int(task.placements[0])))
    assert len(recorded) == len(rows(tmp_path)) == 6
    for task, row in zip(recorded, rows(tmp_path), strict=True):
        assert (task.index, task.placements[0]) == (row["task"], -1 - row["init_state"])
        assert task.succeeded.tolist() == [row["success"]] * row["actions"]
        assert task.instruction == row["instruction"]
        assert decode_image(task.frames[-1]).shape == (28, 28, 3)
    assert {bool(task.succeeded[0]) for task in recorded} == {True, False}


def test_a_runs_critic_judges_what_is_filmed(checkpoint: Path, tmp_path: Path) -> None:
    config = config_for(checkpoint)
    trained_run(tmp_path / "run", checkpoint)
    critic = critic_of(config, load_evaluated_policy(config, tmp_path / "run"))
    assert critic is not None
    frames = [encode_jpeg(np.full((28, 28, 3), level, np.uint8)) for level in (0, 200)]
    # The head starts at zero, and this one's last bias is 0.25.
    assert critic(frames, "open the drawer") == pytest.approx([0.25, 0.25])
    assert critic_of(config, load_evaluated_policy(config, None)) is None


def test_what_cannot_be_evaluated_is_named(checkpoint: Path, tmp_path: Path) -> None:
    config = config_for(checkpoint)
    with pytest.raises(ResumeError, match="has no checkpoint yet"):
        load_evaluated_policy(config, tmp_path)
    with pytest.raises(ResumeError, match="iteration-00099 can't be read"):
        load_evaluated_policy(config, tmp_path / "checkpoints/iteration-00099")
    other = trained_run(tmp_path / "other", checkpoint, digest="f" * 64)
    with pytest.raises(ResumeError, match=r"was trained on base ffff.*set policy.checkpoint"):
        load_evaluated_policy(config, other)
    with pytest.raises(
        ValueError, match="no dataset statistics named 'bridge'; the checkpoint has"
    ):
        load_evaluated_policy(config.model_copy(update={"unnorm_key": "bridge"}), None)
    several = config.model_copy(
        update={"unnorm_key": "", "tasks": TasksConfig(suite="libero_goal_swap")}
    )
    assert load_evaluated_policy(several, None).unnorm_key == "libero_goal"
    with pytest.raises(
        ConfigError, match=r"set unnorm_key: config\.json of the checkpoint has .*, none for reach"
    ):
        load_evaluated_policy(
            several.model_copy(update={"tasks": TasksConfig(suite="reach")}), None
        )


def test_a_policy_is_evaluated_at_the_scale_that_it_was_trained_at(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Factors of another scaling are another policy, and would be believed."""
    learned = config_for(checkpoint)
    path = trained_run(tmp_path / "run", checkpoint)
    changed = trainer_config(lora={"rank": 4, "alpha": 32.0})
    rescaled = learned.model_copy(update={"trainer": changed})
    said = pytest.raises(ConfigError, match=r"with trainer\.lora\.alpha = 8\.0, .* = 32\.0")
    # An earlier version's checkpoint, beside its run's configuration.
    save_config(learned, tmp_path / "run")
    with said:
        load_evaluated_policy(rescaled, tmp_path / "run")
    assert load_evaluated_policy(learned, path).adapter(learned).scaling == 2.0
    # A checkpoint that was carried elsewhere.
    progress, tensors = newest(tmp_path / "run")
    run_checkpoints(tmp_path / "moved").save(
        progress.iteration, replace(progress, terms=terms(learned)), tensors, keep=1
    )
    with said:
        load_evaluated_policy(rescaled, tmp_path / "moved")
    simulator = learned.env.model_copy(update={"settle_steps": 3})
    load_evaluated_policy(learned.model_copy(update={"env": simulator}), tmp_path / "moved")


def test_an_evaluation_overwrites_no_run(tmp_path: Path) -> None:
    save_config(RunConfig(name="mine"), tmp_path)
    with pytest.raises(ConfigError, match="holds a run, not an evaluation: choose another --out"):
        EvaluationFolder(tmp_path, {})
    # One that was killed before its first score is gone on with.
    save_config(RunConfig(name=RUN_ID), tmp_path)
    EvaluationFolder(tmp_path, {})
