"""Long runs that keep their best policy, end when they are good enough, and come back from a fall;
with stand-ins for engine and simulator.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.conftest import Valkey  # noqa: E402
from tests.integration.trainer.checkpointed import newest  # noqa: E402
from tests.integration.trainer.stand_ins import StandInPolicy, serving, working  # noqa: E402
from tests.integration.trainer.test_trainer_groups import GRPO  # noqa: E402
from tests.integration.trainer.test_trainer_loop import (  # noqa: E402
    read_metrics,
    start_trainer,
    train_to_the_end,
    write_config,
)
from vlarl.config import EvaluationConfig, PpoConfig, QueueConfig, RunConfig  # noqa: E402
from vlarl.policy.v1 import policy_pb2  # noqa: E402
from vlarl.queue.rollout_queue import RolloutQueue  # noqa: E402
from vlarl.rollout.v1 import rollout_pb2  # noqa: E402
from vlarl_jobs.evaluation.evaluated_policy import load_evaluated_policy  # noqa: E402
from vlarl_trainer.record.progress import run_checkpoints  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]
OFTEN = EvaluationConfig(episodes_per_task=2, every_iterations=1)
"""Four episodes: all succeed, 0.51 to 1, or none, 0 to 0.49."""
RATE = 2e-3


class Judged(StandInPolicy):
    """Succeeds in the evaluations after these iterations, and in no other one."""

    def __init__(self, checkpoint: Path, solved: set[int]) -> None:
        super().__init__(checkpoint)
        self._solved = solved
        self.weights: dict[int, str] = {}
        """By version, a digest of what it acted with."""

    async def UpdateWeights(self, requests, context) -> policy_pb2.UpdateWeightsResponse:  # noqa: ANN001
        response = await super().UpdateWeights(requests, context)
        digest = hashlib.sha256()
        for tensor in self._model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        self.weights[self.version] = digest.hexdigest()
        return response

    def episode(self, spec: rollout_pb2.EpisodeSpec) -> rollout_pb2.Trajectory:
        trajectory = super().episode(spec)
        if spec.purpose == rollout_pb2.PURPOSE_EVALUATION:
            solved = spec.iteration in self._solved
            trajectory.outcome = (
                rollout_pb2.OUTCOME_SUCCESS if solved else rollout_pb2.OUTCOME_TIME_LIMIT
            )
        return trajectory


class Long:
    """A run's folder and its neighbours; `train` may be called again, with other keys."""

    def __init__(self, run_dir: Path, checkpoint: Path, valkey: Valkey, solved: set[int]) -> None:
        self.run_dir = run_dir
        self.policy = Judged(checkpoint, solved)
        self.ran: list[str] = []
        self._checkpoint = checkpoint
        self._valkey = valkey

    async def train(
        self,
        evaluation: EvaluationConfig = OFTEN,
        ranks: int = 1,
        kill_at: tuple[str, ...] = (),
        **trainer: object,
    ) -> RunConfig:
        """Runs it to its end.

        kill_at: parts of episodes' ids, after each of which the trainer is killed once.
        """
        async with (
            RolloutQueue(QueueConfig(url=self._valkey.url)) as queue,
            serving(self.policy) as address,
            working(queue, self.policy) as ran,
        ):
            url = self._valkey.url
            config = write_config(
                self.run_dir, self._checkpoint, url, address, evaluation, **trainer
            )
            for part in kill_at:
                killed = start_trainer(self.run_dir)
                while not any(part in episode for episode in ran):
                    assert killed.returncode is None, self.log[-3000:]
                    await asyncio.sleep(0.01)
                killed.kill()
            await train_to_the_end(self.run_dir, ranks)
            assert not await queue.outstanding(self.run_dir.name)
            self.ran = [episode.removeprefix(f"{self.run_dir.name}:") for episode in ran]
        return config

    @property
    def log(self) -> str:
        return (self.run_dir / "log.txt").read_text()

    @property
    def kept(self) -> list[str]:
        return sorted(path.name for path in (self.run_dir / "checkpoints").iterdir())

    @property
    def rows(self) -> list[dict[str, float]]:
        return read_metrics(self.run_dir)


def ppo(**changes: object) -> PpoConfig:
    small = {"learning_rate": RATE, "epochs": 2, "mini_batch": 8, "micro_batch": 3, "kl_stop": 0.0}
    return PpoConfig.model_validate(small | changes)


def optimizer_steps(tensors: dict[str, torch.Tensor]) -> set[int]:
    return {
        int(tensor)
        for name, tensor in tensors.items()
        if name.startswith("policy_optimizer.") and name.endswith(".step")
    }


FALLS = {"iterations": 5, "keep_checkpoints": 1, "rollback": 2, "rollback_rate": 0.25}


async def test_a_run_that_falls_goes_back_to_its_best_and_only_once(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    """Version 2 succeeds, 3 and 4 don't. Whatever is killed, and whenever, the curve is one."""
    calm = Long(tmp_path / "calm", checkpoint, valkey, {2, 5})
    config = await calm.train(**FALLS)
    rows = calm.rows
    # Iteration 0 warms the critic up. Version 4 is given up, and 5 is what 2 was.
    assert [row["policy_version"] for row in rows] == [1, 1, 2, 3, 5]
    assert calm.policy.updates == [1, 2, 3, 4, 5, 6]
    assert calm.policy.weights[5] == calm.policy.weights[2]
    assert len(set(calm.policy.weights.values())) == 5
    assert [row["rate_scale"] for row in rows] == [1, 1, 1, 1, 0.25]
    assert [row.get("rolled_back_to") for row in rows] == [None, None, None, None, 2]
    rates = [row.get("learning_rate") for row in rows]
    assert rates == [None, RATE, RATE, RATE, pytest.approx(0.25 * RATE)]
    # The one was the best when the other was written; now it is the other, the later of equals.
    assert calm.kept == ["iteration-00002", "iteration-00005"]
    assert load_evaluated_policy(config, calm.run_dir, best=True).progress.iteration == 5
    progress, learned = newest(calm.run_dir)
    assert progress.rollbacks == [
        {
            "iteration": 4,
            "from_version": 4,
            "to_iteration": 2,
            "to_version": 2,
            "version": 5,
            "rate_scale": 0.25,
        }
    ]
    # The optimizer's steps are those of iterations 1 and 4.
    assert optimizer_steps(learned) == {int(rows[1]["policy_steps"] + rows[4]["policy_steps"])}
    assert "the run goes back: 2 evaluations in a row lie below the best, 100.0%" in calm.log

    killed = Long(tmp_path / "killed", checkpoint, valkey, {2, 5})
    episodes = ("evaluation-00004", "00004:0000", "00004:0002", "evaluation-00005")
    await killed.train(kill_at=episodes, **FALLS)
    assert killed.rows == rows
    assert len(set(killed.ran)) == len(killed.ran)
    again, relearned = newest(killed.run_dir)
    assert again.rollbacks == progress.rollbacks
    assert all(torch.equal(tensor, relearned[key]) for key, tensor in learned.items())

    # Where it ends with the evaluation, the decision is left to whoever goes on.
    halved = Long(tmp_path / "halved", checkpoint, valkey, {2, 5})
    await halved.train(**FALLS | {"iterations": 4})
    assert halved.kept == ["iteration-00002", "iteration-00004"], "the best beside the newest"
    assert newest(halved.run_dir)[0].rollbacks == []
    await halved.train(**FALLS)
    assert halved.rows == rows


async def test_nothing_is_learned_from_what_was_given_up(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    """Its episodes were ordered ahead, and wouldn't be too old for the bound."""
    run = Long(tmp_path / "stale", checkpoint, valkey, {2})
    await run.train(**FALLS, staleness=4)
    stale = [row["stale_actions"] for row in run.rows]
    assert max(stale[2:4]) > 0
    assert (run.rows[4]["rolled_back_to"], stale[4]) == (2, 0)


async def test_a_run_of_groups_goes_back_and_its_schedule_goes_on(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    """Without a critic there is no warm-up: version 3 succeeds, 4 and 5 don't, and 6 is 3 again."""
    grpo = GRPO["grpo"] | {"schedule": "linear", "warmup_steps": 0}
    run = Long(tmp_path / "groups", checkpoint, valkey, {2, 5})
    await run.train(**GRPO | FALLS | {"grpo": grpo})
    assert [row["policy_version"] for row in run.rows] == [1, 2, 3, 4, 6]
    assert run.policy.weights[6] == run.policy.weights[3]
    assert len(set(run.policy.weights.values())) == 6
    assert [row.get("rolled_back_to") for row in run.rows] == [None, None, None, None, 2]
    # A fifth less in each of five iterations; at a quarter after the return.
    rates = [RATE, 0.8 * RATE, 0.6 * RATE, 0.4 * RATE, 0.25 * 0.2 * RATE]
    assert [row["learning_rate"] for row in run.rows] == pytest.approx(rates)
    assert run.kept == ["iteration-00002", "iteration-00005"]
    _, learned = newest(run.run_dir)
    steps = [int(run.rows[number]["policy_steps"]) for number in (0, 1, 4)]
    assert optimizer_steps(learned) == {sum(steps)}


async def test_all_ranks_go_back_even_to_where_training_began(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    """Before the first step there are no moments, and after the return there are none again."""
    evaluation = OFTEN.model_copy(update={"at_start": True})
    settings = {
        "iterations": 3,
        "keep_checkpoints": 1,
        "rollback": 2,
        "critic": {"warmup_iterations": 0, "hidden": (16,), "learning_rate": 1e-2},
        "ppo": ppo(schedule="linear", warmup_steps=2),
    }
    runs = [Long(tmp_path / name, checkpoint, valkey, {0}) for name in ("alone", "together")]
    for run, ranks in zip(runs, (1, 2), strict=True):
        config = await run.train(evaluation, ranks, **settings)
    alone, together = runs
    for one, other in zip(alone.rows, together.rows, strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    for run in runs:
        assert [row["policy_version"] for row in run.rows] == [1, 2, 4]
        assert run.policy.weights[4] == run.policy.weights[1]
        # A third less in each of three iterations; at a half after the return.
        rates = [RATE, RATE * 2 / 3, RATE / 3 / 2]
        assert [row["learning_rate"] for row in run.rows] == pytest.approx(rates)
        assert run.rows[2]["rolled_back_to"] == 0
        _, learned = newest(run.run_dir)
        assert optimizer_steps(learned) == {int(run.rows[2]["policy_steps"])}
        assert run.kept == ["iteration-00000", "iteration-00003"]
        best = load_evaluated_policy(config, run.run_dir, best=True)
        assert (best.progress.iteration, best.progress.version) == (0, 1)
        assert load_evaluated_policy(config, run.run_dir).progress.iteration == 3


async def test_a_run_that_is_good_enough_ends_and_stays_ended(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    run = Long(tmp_path / "enough", checkpoint, valkey, {2})
    await run.train(iterations=4, stop_at_success=0.9)
    assert [row["iteration"] for row in run.rows] == [0, 1]
    said = "the run ends: greedy success of 100.0% (51.0% to 100.0%) after 2 iterations reaches"
    assert f"{said} trainer.stop_at_success = 0.9" in " ".join(run.log.split())
    before, learned = newest(run.run_dir)
    await run.train(iterations=4, stop_at_success=0.9)
    assert run.ran == []
    assert run.log.count("the run ends") == 2
    assert newest(run.run_dir)[0] == before
    await run.train(iterations=3)
    assert [row["iteration"] for row in run.rows] == [0, 1, 2]
    kept = run_checkpoints(run.run_dir)
    _, best = kept.load(kept.path(2))
    assert all(torch.equal(tensor, best[key]) for key, tensor in learned.items())
