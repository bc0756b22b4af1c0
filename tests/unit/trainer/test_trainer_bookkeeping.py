"""Episodes, evaluation and metrics: what a run orders, counts and writes down."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402

from services.trainer.curriculum import Curriculum  # noqa: E402
from services.trainer.episodes import evaluation_episodes, training_episodes  # noqa: E402
from services.trainer.evaluation import (  # noqa: E402
    EvaluationLog,
    count_successes,
    wilson_interval,
)
from services.trainer.metrics import METRICS, MetricsLog  # noqa: E402
from services.trainer.minibatches import mini_batches  # noqa: E402
from vlarl.config import RunConfig, TasksConfig, TrainerConfig  # noqa: E402
from vlarl.rollout.v1 import rollout_pb2  # noqa: E402
from vlarl.trainer.v1 import trainer_pb2  # noqa: E402

pytestmark = pytest.mark.torch
CONFIG = RunConfig(
    name="run", tasks=TasksConfig(indices=(1, 4)), trainer=TrainerConfig(episodes_per_iteration=6)
)


def episodes(seed: int = 7, iteration: int = 2) -> list[rollout_pb2.EpisodeSpec]:
    config = CONFIG.model_copy(update={"seed": seed})
    return training_episodes(config, iteration, Curriculum((1, 4), "uniform"), "key")


def test_episodes_are_a_function_of_seed_and_place() -> None:
    assert episodes() == episodes()
    seeds = {spec.sampling_seed for spec in episodes()}
    assert len(seeds) == 6
    assert not seeds & {spec.sampling_seed for spec in episodes(iteration=3)}
    assert not seeds & {spec.sampling_seed for spec in episodes(seed=8)}


def test_training_never_starts_from_official_states_and_evaluation_always_does() -> None:
    assert {spec.WhichOneof("placement") for spec in episodes()} == {"placement_seed"}
    counted = evaluation_episodes(CONFIG, 9, "key")
    assert {spec.WhichOneof("placement") for spec in counted} == {"init_state"}
    assert {spec.temperature for spec in counted} == {0.0}
    assert [s.init_state for s in counted if s.task.index == 4] == list(range(50))
    assert {spec.max_actions for spec in counted} == {0}, "not the benchmark's step limit"


def test_tasks_get_equal_shares() -> None:
    assert sorted(spec.task.index for spec in episodes()) == [1, 1, 1, 4, 4, 4]


def test_curriculum_remembers_through_a_checkpoint() -> None:
    curriculum = Curriculum((1, 4), "uniform")
    assert curriculum.success_rate(1) == 0.5
    for success in (True, True, False, True):
        curriculum.record(1, success)
    restored = Curriculum((1, 4), "uniform")
    restored.restore(json.loads(json.dumps(curriculum.state())))
    assert (restored.success_rate(1), restored.success_rate(4)) == (0.75, 0.5)


def test_mini_batches_cover_every_sample_once_in_near_equal_pieces() -> None:
    pieces = list(mini_batches(101, 25, np.random.default_rng(0)))
    assert sorted(np.concatenate(pieces)) == list(range(101))
    assert {len(piece) for piece in pieces} == {20, 21}


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(0, 50, 0.0, 0.0713), (25, 50, 0.3664, 0.6336), (50, 50, 0.9287, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval(successes: int, episodes: int, low: float, high: float) -> None:
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-3)


def test_evaluation_counts_and_is_not_repeated(tmp_path: Path) -> None:
    finished = [
        rollout_pb2.Trajectory(
            spec=spec,
            instruction=f"task {spec.task.index}",
            outcome=1 + (spec.init_state % 2),
        )
        for spec in evaluation_episodes(CONFIG, 9, "key")
    ]
    evaluation = count_successes(finished, 9, 4, missing=0)
    assert (evaluation.total.successes, evaluation.total.episodes) == (50, 100)
    log = EvaluationLog(tmp_path)
    assert not log.has(9)
    log.write(evaluation)
    assert log.has(9)
    assert not log.has(10)


def iteration(number: int, **metrics: float) -> trainer_pb2.Iteration:
    return trainer_pb2.Iteration(
        iteration=number, policy_version=number + 1, env_steps=10 * number, metrics=metrics
    )


def test_metrics_follow_the_checkpoint_after_a_crash(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path, CollectorRegistry())
    assert first.resume(None) == []
    for number in range(3):
        first.write(iteration(number, entropy=float(number)))
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "entr')  # cut short by the crash
    second = MetricsLog(tmp_path, CollectorRegistry())
    # The checkpoint stands before the last line: that iteration will be done again.
    done = second.resume(iteration(1, entropy=1.0))
    assert [one.iteration for one in done] == [0, 1]
    second.write(iteration(2, entropy=7.0))
    second.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["iteration"], row["entropy"]) for row in rows] == [(0, 0), (1, 1), (2, 7)]


def test_prometheus_shows_every_metric(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    log = MetricsLog(tmp_path, registry)
    log.resume(None)
    log.write(iteration(0, **dict.fromkeys(METRICS, 0.25)))
    log.close()
    shown = generate_latest(registry).decode()
    for name in METRICS:
        assert f"vlarl_trainer_{name} 0.25" in shown
    assert "vlarl_trainer_iteration 1.0" in shown


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
    for name in METRICS:
        assert f"`{name}`" in page, f"docs/metrics.md lacks {name}"
