"""Evaluations: what counts, when one is due, and what is kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from vlarl.config import ConfigError, EvaluationConfig, SimulationConfig  # noqa: E402
from vlarl.intervals import wilson_interval  # noqa: E402
from vlarl.json_lines import JsonLines  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl.policy.v1 import policy_pb2  # noqa: E402
from vlarl.rollout.v1 import rollout_pb2  # noqa: E402
from vlarl_jobs.evaluation.folder import EvaluationFolder  # noqa: E402
from vlarl_jobs.sft.simulation import Simulation  # noqa: E402
from vlarl_trainer.record.evaluation import (  # noqa: E402
    EpisodeResult,
    EvaluationLog,
    count,
    score_episode,
)
from vlarl_trainer.record.progress import Progress  # noqa: E402
from vlarl_trainer.rollouts.trajectory_check import TrajectoryError  # noqa: E402

pytestmark = pytest.mark.torch
PROGRESS = Progress(run_id="run", base_digest="abc", iteration=9, version=4, env_steps=700)


def trajectory(
    task: int, init_state: int, *, success: bool, tokens: int = 5, version: int = 4
) -> rollout_pb2.Trajectory:
    action = policy_pb2.Action(token_ids=[tokens] * 7, policy_version=version)
    return rollout_pb2.Trajectory(
        spec=rollout_pb2.EpisodeSpec(
            task=rollout_pb2.Task(suite="reach", index=task), init_state=init_state
        ),
        instruction=f"task {task}",
        steps=[rollout_pb2.Step(action=action)] * (3 + init_state),
        outcome=rollout_pb2.OUTCOME_SUCCESS if success else rollout_pb2.OUTCOME_TIME_LIMIT,
        seconds=1.5,
    )


def result(task: int, init_state: int, success: bool = True) -> EpisodeResult:
    return score_episode(trajectory(task, init_state, success=success), version=4)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(0, 50, 0.0, 0.0713), (25, 50, 0.3664, 0.6336), (50, 50, 0.9287, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval(successes: int, episodes: int, low: float, high: float) -> None:
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-3)


def test_an_episode_is_judged_by_its_outcome_and_its_actions() -> None:
    judged = result(2, 1)
    assert (judged.task, judged.init_state, judged.success, judged.actions) == (2, 1, True, 4)
    assert judged.digest == result(3, 1, success=False).digest
    other = score_episode(trajectory(2, 1, success=True, tokens=6), version=4)
    assert other.digest != judged.digest


def test_other_weights_and_sampled_actions_do_not_count() -> None:
    with pytest.raises(TrajectoryError, match=r"versions \[3\] .* instead of version 4"):
        score_episode(trajectory(0, 0, success=True, version=3), version=4)
    sampled = trajectory(0, 0, success=True)
    sampled.spec.temperature = 0.5
    with pytest.raises(TrajectoryError, match=r"at temperature 0\.5"):
        score_episode(sampled, version=4)


def test_scores_by_task_and_in_total() -> None:
    results = [result(4, n, success=n == 0) for n in range(4)] + [result(1, n) for n in range(2)]
    evaluation = count(results, PROGRESS, [])
    assert list(evaluation.tasks) == [1, 4]
    hard = evaluation.tasks[4]
    assert (hard.successes, hard.episodes, hard.mean_actions) == (1, 4, (3 + 4 + 5 + 6) / 4)
    assert (evaluation.total.successes, evaluation.total.episodes) == (3, 6)
    assert evaluation.metrics() == {
        "evaluation_success_rate": 0.5,
        "evaluation_missing_episodes": 0,
        "evaluation_success_rate/task_1": 1.0,
        "evaluation_success_rate/task_4": 0.25,
    }
    written = json.loads(json.dumps(evaluation.to_json()))
    assert (written["env_steps"], written["policy_version"], written["missing"]) == (700, 4, 0)
    assert written["tasks"]["4"]["interval"] == pytest.approx(wilson_interval(1, 4))


def test_an_episode_that_was_given_up_is_a_failure_and_is_named() -> None:
    """As the benchmark's evaluators do: one that breaks is none that succeeded."""
    results = [result(4, n) for n in range(3)] + [result(1, 0, success=False)]
    given_up = [trajectory(4, 3, success=False).spec, trajectory(7, 0, success=False).spec]
    evaluation = count(results, PROGRESS, given_up)
    scores = {
        task: (one.successes, one.episodes, one.missing) for task, one in evaluation.tasks.items()
    }
    assert scores == {1: (0, 1, 0), 4: (3, 4, 1), 7: (0, 1, 1)}
    assert evaluation.tasks[4].success_rate == 0.75
    assert evaluation.tasks[4].interval == wilson_interval(3, 4)
    assert evaluation.tasks[4].mean_actions == (3 + 4 + 5) / 3, "it has no actions to speak of"
    assert (evaluation.total.success_rate, evaluation.missing) == (3 / 6, 2)
    written = evaluation.to_json()
    assert (written["missing"], written["total"]["missing"]) == (2, 2)
    assert evaluation.metrics()["evaluation_missing_episodes"] == 2


def evaluated_at(tmp_path: Path, *done: tuple[int, int]) -> EvaluationLog:
    log = EvaluationLog(tmp_path)
    for iteration, env_steps in done:
        progress = replace(PROGRESS, iteration=iteration, env_steps=env_steps)
        log.write(count([], progress, []), seconds=1.5)
    return EvaluationLog(tmp_path)


@pytest.mark.parametrize(
    ("done", "iteration", "env_steps", "due"),
    [
        ([], 0, 0, False),
        ([], 3, 2499, False),
        ([], 3, 2500, True),
        ([(3, 2600)], 3, 2600, False),  # a resumed run comes by again
        ([(3, 2600)], 5, 4999, False),
        ([(3, 2600)], 6, 5400, True),
        ([(3, 2600)], 9, 99999, True),
    ],
)
def test_an_evaluation_is_due_when_another_multiple_of_steps_is_reached(
    tmp_path: Path, done: list[tuple[int, int]], iteration: int, env_steps: int, due: bool
) -> None:
    log = evaluated_at(tmp_path, *done)
    config = EvaluationConfig(every_env_steps=2500)
    progress = replace(PROGRESS, iteration=iteration, env_steps=env_steps)
    assert log.due(progress, config) is due
    assert not log.due(progress, EvaluationConfig())


def test_an_evaluation_is_due_after_every_so_many_iterations(tmp_path: Path) -> None:
    log = evaluated_at(tmp_path, (2, 10))
    config = EvaluationConfig(every_iterations=2)
    due = [log.due(replace(PROGRESS, iteration=number), config) for number in range(5)]
    assert due == [False, False, False, False, True]


def test_evaluations_of_checkpoints_that_were_removed_are_forgotten(tmp_path: Path) -> None:
    """Whoever removes the newest goes on from the one before, and trains another policy."""
    evaluated_at(tmp_path, (2, 10), (4, 20))
    log = EvaluationLog(tmp_path, done=2)
    assert [row["iteration"] for row in log.rows] == [2]
    assert log.due(replace(PROGRESS, iteration=4), EvaluationConfig(every_iterations=2))
    assert [row["iteration"] for row in EvaluationLog(tmp_path).rows] == [2]


def test_the_policy_that_training_starts_from_is_evaluated_on_request(tmp_path: Path) -> None:
    config = EvaluationConfig(at_start=True)
    started = replace(PROGRESS, iteration=0, env_steps=0)
    assert EvaluationLog(tmp_path).due(started, config)
    assert not EvaluationLog(tmp_path).due(started, EvaluationConfig())
    assert not EvaluationLog(tmp_path).due(PROGRESS, config)
    assert not evaluated_at(tmp_path, (0, 0)).due(started, config)


def test_an_evaluation_says_how_long_it_took(tmp_path: Path) -> None:
    evaluated_at(tmp_path, (2, 10))
    row = json.loads((tmp_path / "evaluations.jsonl").read_text())
    assert row["seconds"] == 1.5
    assert row["completed_timestamp_seconds"] > 1.7e9


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    JsonLines(file).append({"a": 1})
    with file.open("a") as half:
        half.write('{"a": {"b": 2}')
    again = JsonLines(file)
    assert again.rows == [{"a": 1}]
    again.append({"a": 3})
    assert JsonLines(file).rows == [{"a": 1}, {"a": 3}]


def test_fine_tuning_counts_an_evaluations_given_up_episodes_as_failed(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "evaluations/step-0000003", {})
    folder.add(result(0, 0))
    gone = trajectory(0, 1, success=False).spec
    folder.write_score(count(folder.results, PROGRESS, [gone]), ended=True)
    config = SimulationConfig(config=tmp_path / "none.toml", every_steps=3)
    alone = Ranks.alone(torch.device("cpu"))

    def export(step: int, to: Path) -> None:
        raise AssertionError("it was evaluated again")

    simulation = Simulation(config, tmp_path, 3, export, alone)
    assert simulation.success(3) == {"success_rate": 0.5, "success_rate/task_0": 0.5}


def test_a_folder_goes_on_with_its_own_episodes_only(tmp_path: Path) -> None:
    protocol = {"profile": "faithful", "crop": (1, 2, 3, 4)}
    folder = EvaluationFolder(tmp_path / "out", protocol)
    folder.add(result(4, 0))
    folder.write_score(count(folder.results, PROGRESS, []), ended=False)
    again = EvaluationFolder(tmp_path / "out", protocol)
    assert again.results == [result(4, 0)]
    assert again.has(4, 0)
    assert not again.has(4, 1)
    with pytest.raises(ConfigError, match="profile = faithful, not fast: choose another --out"):
        EvaluationFolder(tmp_path / "out", protocol | {"profile": "fast"})
    content = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert (content["complete"], content["total"]["episodes"]) == (False, 1)
