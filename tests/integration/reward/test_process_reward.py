"""The process reward model: its scores by hand, how it is replaced while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.checkpoint_layouts import lay_out, weights  # noqa: E402
from tests.conftest import Valkey  # noqa: E402
from vlarl.config import PpoConfig, ProcessRewardConfig, QueueConfig  # noqa: E402
from vlarl.errors import ConfigError  # noqa: E402
from vlarl.images import decode_image, encode_jpeg, prepare_image  # noqa: E402
from vlarl.models.network import pad_prompts  # noqa: E402
from vlarl.models.openvla.network import load_model  # noqa: E402
from vlarl.models.openvla.pixels import PixelNormalizer  # noqa: E402
from vlarl.models.openvla.prompt import PromptBuilder  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.policy.v1 import policy_pb2  # noqa: E402
from vlarl.queue.entries import Delivery  # noqa: E402
from vlarl.queue.rollout_queue import RolloutQueue  # noqa: E402
from vlarl.reward.v1 import reward_pb2, reward_pb2_grpc  # noqa: E402
from vlarl.rollout.v1 import rollout_pb2  # noqa: E402
from vlarl.rpc.channel import open_channel, wait_until_serving  # noqa: E402
from vlarl.rpc.errors import violations  # noqa: E402
from vlarl_reward.models.base import NotFinite, Unscorable  # noqa: E402
from vlarl_reward.models.process import ProcessReward, dense_rewards  # noqa: E402
from vlarl_reward.models.registry import load_reward_model  # noqa: E402
from vlarl_reward.worker import score_all  # noqa: E402

pytestmark = pytest.mark.torch
FIRST_ACTION = 512
GAMMA = 0.97
PPO = PpoConfig(gamma=GAMMA)
TERMINAL = PpoConfig(gamma=GAMMA, time_limit="terminal")


def reward_model(folder: Path, seed: int, version: str) -> Path:
    """An untrained model; its probabilities are a function of the seed."""
    make_tiny_checkpoint(folder, seed, image_size=28, tower_dim=32, text_dim=64, tower_depth=2)
    (folder / "reward_model.json").write_text(json.dumps({"version": version}))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_model(tmp_path_factory.mktemp("reward") / "model", 1, "one")


def trajectory(
    steps: int, *, seed: int = 0, success: bool = True, instruction: str = "Open the drawer"
) -> rollout_pb2.Trajectory:
    drawn = np.random.default_rng(seed)
    return rollout_pb2.Trajectory(
        instruction=instruction,
        steps=[
            rollout_pb2.Step(
                image=encode_jpeg(drawn.integers(256, size=(40, 40, 3), dtype=np.uint8)),
                action=policy_pb2.Action(
                    token_ids=FIRST_ACTION + drawn.integers(256, size=7, dtype=np.int64)
                ),
            )
            for _ in range(steps)
        ],
        outcome=rollout_pb2.OUTCOME_SUCCESS if success else rollout_pb2.OUTCOME_TIME_LIMIT,
        final_image=encode_jpeg(drawn.integers(256, size=(40, 40, 3), dtype=np.uint8)),
    )


def config_for(checkpoint: Path, **changes: object) -> ProcessRewardConfig:
    values = {"model": "rprm", "checkpoint": checkpoint, "coefficient": 0.5, "dtype": "float32"}
    return ProcessRewardConfig.model_validate(values | changes)


def by_hand(checkpoint: Path, one: rollout_pb2.Trajectory) -> list[float]:
    """Of each action, a step at a time."""
    return [
        probability(checkpoint, step.image, one.instruction, step.action.token_ids)
        for step in one.steps
    ]


def potentials_by_hand(checkpoint: Path, one: rollout_pb2.Trajectory) -> list[float]:
    """Of each state and of the last one, before any token."""
    frames = [*(step.image for step in one.steps), one.final_image]
    return [probability(checkpoint, frame, one.instruction, []) for frame in frames]


def probability(checkpoint: Path, image: bytes, instruction: str, tokens: Sequence[int]) -> float:
    """The share of the positive word among the two, in the next token."""
    model, prompts = load_model(checkpoint), PromptBuilder(checkpoint)
    normalize = PixelNormalizer.from_directory(checkpoint)
    ids, _ = pad_prompts([prompts.token_ids(instruction)], model.config.pad_token_id)
    frame = prepare_image(decode_image(image), 28, model.config.spec.center_crop)
    pixels = torch.from_numpy(normalize(frame[None]))
    text = torch.cat([ids, torch.tensor([list(tokens)], dtype=torch.long)], dim=1)
    with torch.inference_mode():
        inputs = model.embed(model.image_tokens(pixels), text)
        logits = model.language_model(inputs_embeds=inputs).logits[0, -1]
    no, yes = (float(logits[token].exp()) for token in prompts.verdict_ids)
    return yes / (yes + no)


def test_scores_are_the_probabilities_of_the_next_token(checkpoint: Path) -> None:
    solved, failed = trajectory(4), trajectory(3, seed=1, success=False, instruction="go")
    first, second = ProcessReward(config_for(checkpoint), PPO).score([solved, failed])
    assert isinstance(first, rollout_pb2.RewardScores)
    assert isinstance(second, rollout_pb2.RewardScores)
    for one, scores in ((solved, first), (failed, second)):
        assert list(scores.dense) == pytest.approx(by_hand(checkpoint, one), abs=1e-5)
        assert (scores.model, scores.version) == ("rprm", "one")
    assert list(first.sparse) == [0, 0, 0, 1]
    assert list(first.total) == pytest.approx(
        [*(0.5 * p for p in first.dense[:3]), 1 + 0.5 * first.dense[3]]
    )
    assert list(second.total) == pytest.approx([0.5 * p for p in second.dense])
    assert max(first.dense) - min(first.dense) > 1e-4, "it sees no difference between steps"


def test_batches_do_not_change_what_is_probability(checkpoint: Path) -> None:
    many = [trajectory(2 + number, seed=number) for number in range(4)]
    together = ProcessReward(config_for(checkpoint), PPO).score(many)
    apart = [
        ProcessReward(config_for(checkpoint, batch_steps=3), PPO).score([one])[0] for one in many
    ]
    for one, other in zip(together, apart, strict=True):
        assert isinstance(one, rollout_pb2.RewardScores)
        assert isinstance(other, rollout_pb2.RewardScores)
        assert list(one.dense) == pytest.approx(list(other.dense), abs=1e-6)


def test_both_forms_by_hand() -> None:
    probabilities = np.array([0.2, 0.6, 0.5])
    assert dense_rewards(probabilities, "additive", 0.9).tolist() == probabilities.tolist()
    expected = [0.9 * 0.6 - 0.2, 0.9 * 0.5 - 0.6]
    assert dense_rewards(probabilities, "potential", 0.9).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("success", "ppo", "goes_on"),
    [(True, PPO, False), (True, TERMINAL, False), (False, PPO, True), (False, TERMINAL, False)],
)
def test_a_potential_is_of_states_and_ends_as_the_trainers_values_do(
    checkpoint: Path, success: bool, ppo: PpoConfig, goes_on: bool
) -> None:
    one = trajectory(3, success=success)
    (scores,) = ProcessReward(config_for(checkpoint, form="potential"), ppo).score([one])
    assert isinstance(scores, rollout_pb2.RewardScores)
    *states, last = potentials_by_hand(checkpoint, one)
    potentials = [*states, last if goes_on else 0.0]
    wanted = [GAMMA * after - now for now, after in itertools.pairwise(potentials)]
    assert list(scores.dense) == pytest.approx(wanted, abs=1e-5)
    assert list(scores.total) == pytest.approx(
        [0.5 * dense + sparse for dense, sparse in zip(wanted, scores.sparse, strict=True)],
        abs=1e-5,
    )
    assert max(potentials) - min(states) > 1e-4, "it sees no difference between states"
    for step in one.steps:
        step.action.token_ids[:] = [FIRST_ACTION] * 7
    assert ProcessReward(config_for(checkpoint, form="potential"), ppo).score([one]) == [scores]


def test_a_chunk_has_the_potential_of_its_states_and_no_probability(checkpoint: Path) -> None:
    """The discount is that of the actions that were executed, as the trainer's."""
    one = trajectory(3, success=False)
    for step, executed in zip(one.steps, (4, 4, 2), strict=True):
        step.action.token_ids[:] = [*step.action.token_ids] * 4
        step.executed = executed
    (scores,) = ProcessReward(config_for(checkpoint, form="potential"), PPO).score([one])
    assert isinstance(scores, rollout_pb2.RewardScores)
    states = potentials_by_hand(checkpoint, trajectory(3, success=False))
    pairs = zip((4, 4, 2), itertools.pairwise(states), strict=True)
    wanted = [GAMMA**executed * after - now for executed, (now, after) in pairs]
    assert list(scores.dense) == pytest.approx(wanted, abs=1e-5)
    (refused,) = ProcessReward(config_for(checkpoint), PPO).score([one])
    assert isinstance(refused, Unscorable)
    assert all('reward.form = "potential"' in why for _, why in refused.problems)


def test_a_cut_state_that_cannot_be_scored_is_named(checkpoint: Path) -> None:
    """Only where it counts."""
    bare, broken = trajectory(2, success=False), trajectory(2, success=False)
    bare.final_image = b""
    broken.final_image = broken.final_image[:100]
    shaped = config_for(checkpoint, form="potential")
    for result in score_all(ProcessReward(shaped, PPO), [bare, broken]):
        assert isinstance(result, Unscorable)
        assert [field for field, _ in result.problems] == ["trajectory.final_image"]
    for model in (ProcessReward(shaped, TERMINAL), ProcessReward(config_for(checkpoint), PPO)):
        for result in score_all(model, [bare, broken]):
            assert isinstance(result, rollout_pb2.RewardScores)


def test_what_cannot_be_scored_is_named_and_the_rest_is_scored(checkpoint: Path) -> None:
    model = ProcessReward(config_for(checkpoint), PPO)
    other, broken, silent, bare = (trajectory(2, seed=n) for n in range(4))
    other.steps[1].action.token_ids[3] = 31744
    broken.steps[0].image = broken.steps[0].image[:100]
    silent.instruction = " "
    bare.steps[1].image = b""
    good = trajectory(3)
    results = score_all(model, [other, good, broken, silent, bare])
    fields = [[f for f, _ in r.problems] if isinstance(r, Unscorable) else None for r in results]
    assert fields == [
        ["trajectory.steps[1].action.token_ids"],
        None,
        ["trajectory.steps[0].image"],
        ["trajectory.instruction"],
        ["trajectory.steps[1].image"],
    ]
    (first, *_) = results
    assert isinstance(first, Unscorable)
    assert first.problems[0][1] == "must be 7 ids from 512 to 767, the reward model's own"
    assert score_all(model, [other, broken])[1] == results[2]


def test_another_model_is_taken_up_between_two_batches(tmp_path: Path) -> None:
    here = reward_model(tmp_path / "here", 1, "one")
    model = ProcessReward(config_for(here), PPO)
    one = trajectory(3)
    (before,) = model.score([one])
    assert model.score([one]) == [before]
    shutil.rmtree(here)
    assert model.score([one]) == [before], "nothing there yet: the old one goes on"
    reward_model(here, 2, "two")
    (after,) = model.score([one])
    assert isinstance(after, rollout_pb2.RewardScores)
    assert after.version == "two"
    assert list(after.dense) == pytest.approx(by_hand(here, one), abs=1e-5)
    (here / "reward_model.json").unlink()
    (here / "reward_model.json").write_text("{")
    (still,) = model.score([one])
    assert still == after, "a broken one is left alone"
    whole = (here / "model.safetensors").read_bytes()
    (here / "model.safetensors").unlink()
    (here / "reward_model.json").write_text('{"version": "three"}')
    assert model.score([one]) == [after], "as one that is still being copied"
    (here / "model.safetensors").write_bytes(whole)
    (third,) = model.score([one])
    assert isinstance(third, rollout_pb2.RewardScores)
    assert third.version == "three"


def test_a_policy_is_no_reward_model(tmp_path: Path) -> None:
    folder = reward_model(tmp_path / "policy", 1, "one")
    (folder / "reward_model.json").unlink()
    with pytest.raises(ConfigError, match="is no reward model"):
        load_reward_model(config_for(folder), PPO)


@contextlib.asynccontextmanager
async def started(
    checkpoint: Path, valkey: Valkey, address: Path, **settings: object
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A reward server as a process, once it has written down where it listens."""
    settings |= {
        "queue.url": valkey.url,
        "reward.model": "rprm",
        "reward.checkpoint": str(checkpoint),
        "reward.threads": "1",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vlarl", "serve", "reward", "--listen", "127.0.0.1:0"),
        *("--address-file", str(address)),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    )
    try:
        while not address.exists():
            assert process.returncode is None
            await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.slow
async def test_it_serves_as_a_process_of_its_own(
    checkpoint: Path, valkey: Valkey, tmp_path: Path
) -> None:
    address = tmp_path / "address"
    async with started(checkpoint, valkey, address) as process:
        async with open_channel(address.read_text().strip()) as channel:
            await wait_until_serving(channel, "vlarl.reward.v1.RewardService", 60)
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            model = await stub.GetRewardModel(reward_pb2.GetRewardModelRequest())
            assert (model.model, model.version, model.needs_frames) == ("rprm", "one", True)
            one = trajectory(3)
            request = reward_pb2.ScoreTrajectoryRequest(trajectory=one)
            answer = await stub.ScoreTrajectory(request)
            assert list(answer.scores.dense) == pytest.approx(by_hand(checkpoint, one), abs=1e-5)
            one.steps[2].action.token_ids[0] = 3
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ScoreTrajectory(reward_pb2.ScoreTrajectoryRequest(trajectory=one))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert [f for f, _ in violations(refused.value)] == ["trajectory.steps[2].action.token_ids"]
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.mark.slow
async def test_what_a_killed_server_had_in_hand_is_scored_by_two_others(
    checkpoint: Path, valkey: Valkey, tmp_path: Path
) -> None:
    settings = {
        "queue.claim_after_seconds": 1,
        "reward.batch_trajectories": 1,
        "reward.batch_steps": 1,  # slow, so that both others get some
    }
    names = [f"e{number}" for number in range(12)]
    async with RolloutQueue(QueueConfig(url=valkey.url)) as queue, contextlib.AsyncExitStack() as s:
        await queue.issue(rollout_pb2.EpisodeSpec(episode_id=name, run_id="r") for name in names)
        for seed, _ in enumerate(names):
            episode = await queue.next_episode("worker")
            assert episode is not None
            one = trajectory(20, seed=seed)
            one.spec.CopyFrom(episode.message)
            await queue.finish_episode(episode, one)

        async def in_work() -> int:
            return {state.stream: state.pending for state in await queue.states()}["trajectories"]

        dying = await s.enter_async_context(
            started(checkpoint, valkey, tmp_path / "dying", **settings)
        )
        while not await in_work():
            await asyncio.sleep(0.005)
        dying.kill()
        await dying.wait()
        assert await in_work() == 1
        for name in "one", "other":
            await s.enter_async_context(started(checkpoint, valkey, tmp_path / name, **settings))
        scored: list[Delivery[rollout_pb2.Trajectory]] = []
        while len(scored) < len(names):
            scored += await queue.next_scored("r", len(names))
        assert await queue.next_scored("r", 1, block_seconds=0.5) == []
        consumers = {state.stream: state.consumers for state in await queue.states()}
    assert consumers["trajectories"] == 3
    assert sorted(found.message.spec.episode_id for found in scored) == sorted(names)
    assert {found.message.scores.version for found in scored} == {"one"}
    last = next(found.message for found in scored if found.message.spec.episode_id == names[-1])
    expected = by_hand(checkpoint, last)
    assert list(last.scores.dense) == pytest.approx(expected, abs=1e-5)


def test_a_model_that_has_diverged_scores_nothing(checkpoint: Path, tmp_path: Path) -> None:
    here = lay_out(checkpoint, tmp_path / "nan", lambda _: None)
    weights(here, lambda tensors: tensors["language_model.model.norm.weight"].fill_(torch.nan))
    (result,) = score_all(ProcessReward(config_for(here), PPO), [trajectory(3)])
    assert isinstance(result, NotFinite)
    assert "reward model rprm one gives rewards that aren't finite" in result.cause
