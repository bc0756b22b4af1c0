"""Episodes, evaluation and metrics: what a run orders, counts and writes down."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import (  # noqa: E402
    EventAccumulator,
)

from vlarl.config import (  # noqa: E402
    CurriculumConfig,
    LoggingConfig,
    RunConfig,
    TasksConfig,
    TrainerConfig,
)
from vlarl.learning.optimizer import mini_batches  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl.policy.v1 import policy_pb2  # noqa: E402
from vlarl.rollout.v1 import rollout_pb2  # noqa: E402
from vlarl.trainer.v1 import trainer_pb2  # noqa: E402
from vlarl_trainer.loop import executed_steps  # noqa: E402
from vlarl_trainer.record.actions import ActionLog  # noqa: E402
from vlarl_trainer.record.machine import record_start  # noqa: E402
from vlarl_trainer.record.metrics import METRICS, TASK_METRICS, MetricsLog, gauge_name  # noqa: E402
from vlarl_trainer.rollouts.curriculum import Curriculum  # noqa: E402
from vlarl_trainer.rollouts.episodes import EpisodePlan  # noqa: E402
from vlarl_trainer.rollouts.plan import evaluation_episodes  # noqa: E402

pytestmark = pytest.mark.torch
CONFIG = RunConfig(
    name="run", tasks=TasksConfig(indices=(1, 4)), trainer=TrainerConfig(episodes_per_iteration=6)
)


def episodes(seed: int = 7, iteration: int = 2) -> list[rollout_pb2.EpisodeSpec]:
    config = CONFIG.model_copy(update={"seed": seed})
    curriculum = Curriculum((1, 4), CurriculumConfig(kind="uniform"))
    return EpisodePlan(config, curriculum, "key").first(iteration)


def test_episodes_are_a_function_of_seed_and_place() -> None:
    assert episodes() == episodes()
    seeds = {spec.sampling_seed for spec in episodes()}
    assert len(seeds) == 6
    assert not seeds & {spec.sampling_seed for spec in episodes(iteration=3)}
    assert not seeds & {spec.sampling_seed for spec in episodes(seed=8)}


def test_a_run_orders_what_it_ordered_before_there_were_groups() -> None:
    """A run of version 0.1.0 may go on: its episodes are in the queue under these ids."""
    first = episodes()[0]
    assert [spec.task.index for spec in episodes()] == [4, 4, 1, 4, 1, 1]
    assert first == rollout_pb2.EpisodeSpec(
        episode_id="run:00002:0000",
        run_id="run",
        purpose=rollout_pb2.PURPOSE_TRAINING,
        iteration=2,
        task=rollout_pb2.Task(suite="libero_spatial", index=4),
        placement_seed=8513287328667842934,
        temperature=1.5,
        sampling_seed=6644120033810479438,
        unnorm_key="key",
        record_frames=True,
    )


def test_training_never_starts_from_official_states_and_evaluation_always_does() -> None:
    assert {spec.WhichOneof("placement") for spec in episodes()} == {"placement_seed"}
    counted = evaluation_episodes(CONFIG, 9, "key")
    assert {spec.WhichOneof("placement") for spec in counted} == {"init_state"}
    assert {spec.temperature for spec in counted} == {0.0}
    assert [s.init_state for s in counted if s.task.index == 4] == list(range(50))
    assert {spec.max_actions for spec in counted} == {0}, "not the benchmark's step limit"
    assert all(spec.unscored for spec in counted), "nobody learns from them"
    assert not any(spec.unscored for spec in episodes())


def test_tasks_get_equal_shares() -> None:
    assert sorted(spec.task.index for spec in episodes()) == [1, 1, 1, 4, 4, 4]


def test_mini_batches_cover_every_sample_once_in_near_equal_pieces() -> None:
    pieces = list(mini_batches(101, 25, np.random.default_rng(0)))
    assert sorted(np.concatenate(pieces)) == list(range(101))
    assert {len(piece) for piece in pieces} == {20, 21}


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


def test_a_line_that_was_written_knows_more_than_its_checkpoint(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path, CollectorRegistry())
    first.resume(None)
    first.write(iteration(0, entropy=1.0, seconds_iteration=12.5))
    first.close()
    second = MetricsLog(tmp_path, CollectorRegistry())
    (done,) = second.resume(iteration(0, entropy=1.0))
    second.close()
    assert done.metrics["seconds_iteration"] == 12.5
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["seconds_iteration"] == 12.5


def test_a_line_that_a_crash_prevented_comes_to_tensorboard_too(tmp_path: Path) -> None:
    first = MetricsLog(tmp_path, CollectorRegistry())
    first.resume(None)
    first.write(iteration(0, entropy=1.0))
    first.close()
    second = MetricsLog(tmp_path, CollectorRegistry())
    second.resume(iteration(1, entropy=2.0))
    second.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert sorted((one.step, one.value) for one in board.Scalars("entropy")) == [(0, 1), (1, 2)]


def test_a_run_may_do_without_tensorboard(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"logging": LoggingConfig(tensorboard=False)})
    log = MetricsLog(tmp_path, CollectorRegistry(), config)
    log.resume(None)
    log.write(iteration(0, entropy=1.0))
    log.evaluation({"evaluation_success_rate": 0.5}, 10)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def acted(*values: list[float]) -> rollout_pb2.Trajectory:
    steps = [rollout_pb2.Step(action=policy_pb2.Action(values=value)) for value in values]
    return rollout_pb2.Trajectory(steps=steps)


def test_actions_cut_short_count_what_was_executed_of_them() -> None:
    """A success in the first of four control steps, and an action that nobody counted."""
    steps = [rollout_pb2.Step(control_steps=count) for count in (4, 4, 1)]
    solved, uncounted = rollout_pb2.Trajectory(steps=steps), rollout_pb2.Trajectory()
    uncounted.steps.add()
    assert executed_steps([solved, uncounted], action_repeat=4) == 9 + 4


def test_the_first_and_the_latest_iterations_actions_are_kept(tmp_path: Path) -> None:
    log = ActionLog(tmp_path)
    for number in range(4):
        log.write(number, [acted([number, 0.5]), acted([number, 0.25], [number, 0.125])])
    ActionLog(tmp_path).write(3, [acted([9.0, 9.0])])  # done again after a crash
    kept = sorted((tmp_path / "actions").iterdir())
    assert [path.name for path in kept] == ["iteration-00000.npz", "iteration-00003.npz"]
    with np.load(kept[0]) as first, np.load(kept[1]) as latest:
        assert first["values"].tolist() == [[0, 0.5], [0, 0.25], [0, 0.125]]
        assert first["episodes"].tolist() == [0, 1, 1]
        assert latest["values"].tolist() == [[9, 9]]


def test_every_start_names_its_machine(tmp_path: Path) -> None:
    ranks = Ranks(rank=0, size=2, device=torch.device("cpu"), mesh=None)
    for done in (0, 5):
        record_start(tmp_path, done, ranks)
    rows = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 5]
    assert rows[0]["started_timestamp_seconds"] <= rows[1]["started_timestamp_seconds"]
    for row in rows:
        assert (row["ranks"], row["accelerator"], row["torch"]) == (2, "", torch.__version__)
        assert row["processor"]
        assert row["cores"] >= 1
        assert row["memory_gib"] > 0


def test_evaluations_stand_over_control_steps_and_survive_a_resumed_run(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, CollectorRegistry())
    log.resume(None)
    log.evaluation({"evaluation_success_rate": 0.25, "evaluation_success_rate/task_3": 0.5}, 2600)
    log.close()
    resumed = MetricsLog(tmp_path, CollectorRegistry())
    resumed.resume(iteration(1))
    resumed.evaluation({"evaluation_success_rate": 0.75}, 5100)
    resumed.close()
    board = EventAccumulator(str(tmp_path / "tensorboard" / "evaluation"))
    board.Reload()
    shown = [(event.step, event.value) for event in board.Scalars("evaluation_success_rate")]
    # Files of one second are read in the order of their names: the 10th before the 9th.
    assert sorted(shown) == [(2600, 0.25), (5100, 0.75)]
    assert [event.step for event in board.Scalars("evaluation_success_rate/task_3")] == [2600]


def test_prometheus_shows_every_metric(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    log = MetricsLog(tmp_path, registry)
    log.resume(None)
    by_task = {f"{name}/task_3": 0.75 for name in TASK_METRICS}
    log.write(iteration(0, **dict.fromkeys(METRICS, 0.25), **by_task))
    log.close()
    shown = generate_latest(registry).decode()
    for name in METRICS:
        assert f"{gauge_name(name)} 0.25" in shown
    assert "vlarl_trainer_iteration 1.0" in shown
    assert "vlarl_trainer_rollout_seconds 0.25" in shown, "the unit comes last"
    assert 'vlarl_trainer_task_success_rate{task="3"} 0.75' in shown
    assert 'vlarl_trainer_task_probability{task="3"} 0.75' in shown


def test_what_was_never_measured_is_no_number(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    log = MetricsLog(tmp_path, registry)
    log.resume(None)
    log.write(iteration(0, success_rate=0.5))
    log.show_bound(1e-4)
    log.close()
    shown = generate_latest(registry).decode()
    assert "vlarl_trainer_success_rate 0.5" in shown
    assert "vlarl_trainer_dense_success_correlation NaN" in shown
    assert "vlarl_trainer_logprob_gap_bound 0.0001" in shown
    free = registry.get_sample_value("vlarl_trainer_disk_free_bytes")
    assert free is not None
    assert free > 0


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
    for name in METRICS:
        assert f"`{name}`" in page, f"docs/metrics.md lacks {name}"
