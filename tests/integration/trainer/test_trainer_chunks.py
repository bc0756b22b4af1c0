"""How a policy learns that answers in chunks, sees two cameras and reads proprioception."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from tests.integration.trainer import rank_program  # noqa: E402
from tests.integration.trainer.chunk_samples import (  # noqa: E402
    CAMERAS,
    ActingInChunks,
    chunk_trajectories,
    make_chunk_checkpoint,
)
from tests.integration.trainer.forked import Program  # noqa: E402
from tests.integration.trainer.trainer_samples import trainer_config  # noqa: E402
from vlarl.config import CriticConfig, PpoConfig, TrainerConfig  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl.models.registry import policy_family  # noqa: E402
from vlarl.policy.v1 import policy_pb2  # noqa: E402
from vlarl_trainer.algorithms.ppo import Ppo, batch_advantages  # noqa: E402
from vlarl_trainer.batch import Experience, Observations, build_batch  # noqa: E402
from vlarl_trainer.learner import Learner  # noqa: E402
from vlarl_trainer.publisher import PublishError, check_policy  # noqa: E402
from vlarl_trainer.rollouts.trajectory_check import TrajectoryCheck  # noqa: E402

pytestmark = pytest.mark.torch
ALONE = Ranks.from_environment()
TOKENS, DIMENSIONS = 56, 7


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chunk_checkpoint(tmp_path_factory.mktemp("checkpoint") / "chunks")


def learner(checkpoint: Path, config: TrainerConfig | None = None) -> Learner:
    config = config or trainer_config(ppo=once())
    return Learner(checkpoint, config, center_crop=False, seed=3, ranks=ALONE)


def once(**changes: object) -> PpoConfig:
    """One step of all samples."""
    keys = {"epochs": 1, "mini_batch": 10**6, "micro_batch": 3}
    return trainer_config().ppo.model_copy(update=keys | changes)


def grpo(**changes: object) -> TrainerConfig:
    keys = {"learning_rate": 2e-3, "mini_batch": 10**6, "micro_batch": 3, "kl_stop": 0.0}
    return trainer_config(
        algorithm="grpo",
        episodes_per_iteration=4,
        ppo=PpoConfig(),
        critic=CriticConfig(),
        grpo=keys | {"group_size": 2} | changes,
    )


@pytest.fixture(scope="module")
def experience(chunked: Path) -> Experience:
    acting = ActingInChunks.of_learner(chunked, learner(chunked).policy)
    return Experience(0, 1, chunk_trajectories(acting))


def counted(experience: Experience) -> np.ndarray:
    """bool [N, 56]: tokens of control steps that were executed."""
    executed = [step.executed for one in experience.trajectories for step in one.steps]
    return np.arange(TOKENS) // DIMENSIONS < np.array(executed)[:, None]


def observations_of(one: Learner, checkpoint: Path, experience: Experience) -> Observations:
    batch, processor = build_batch(experience), policy_family(checkpoint).processor(False)
    return Observations(batch.frames, batch.instructions, processor, ALONE.device, batch.proprio)


def logprobs_of(one: Learner, checkpoint: Path, experience: Experience) -> np.ndarray:
    observations = observations_of(one, checkpoint, experience)
    return one._look(observations, build_batch(experience)).logprobs.numpy()


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_successes_become_likelier_by_what_was_executed_of_them(
    chunked: Path, experience: Experience, algorithm: str
) -> None:
    """And the log-probs before the step are the network's of each state alone, ends included."""
    spec = policy_family(chunked).spec
    TrajectoryCheck.of_policy(spec, version=1, staleness=0, temperature=1.3).check(
        experience.trajectories
    )
    config = grpo() if algorithm == "grpo" else None
    one, batch = learner(chunked, config), build_batch(experience)
    report = one.learn(experience)
    assert report["logprob_gap"] < 1e-5
    assert report["start_outside_clip"] == report["clip_fraction"] == 0.0
    assert report["policy_steps"] == 1
    assert batch.executed.tolist() == [8, 8, 3, 8, 5, 8, 8, 8, 1, 8, 8]
    moved = logprobs_of(one, chunked, experience) - batch.server_logprobs
    moved = np.where(counted(experience), moved, 0.0).sum(axis=1)
    success = np.concatenate([[e.terminal] * (e.stop - e.start) for e in batch.episodes])
    assert moved[success].mean() > 0 > moved[~success].mean()


def stale(experience: Experience) -> Experience:
    """For a trainer whose weights have moved on: the server's log-probs aren't compared."""
    return Experience(1, experience.version + 1, experience.trajectories)


def with_other_tokens(experience: Experience, executed: bool) -> Experience:
    """Other tokens and log-probs where nothing was executed, or one where something was."""
    found = [copy.deepcopy(one) for one in experience.trajectories]
    for step in (step for one in found for step in one.steps):
        tokens, logprobs = step.action.token_ids, step.action.logprobs
        for place in range(DIMENSIONS * step.executed, TOKENS):
            tokens[place] = 768 - (tokens[place] - 511)
            logprobs[place] = -40.0
    if executed:
        found[0].steps[2].action.logprobs[DIMENSIONS * found[0].steps[2].executed - 1] -= 0.5
    return Experience(experience.iteration, experience.version, found)


@pytest.mark.parametrize(
    "config",
    [
        trainer_config(ppo=once(epochs=2, mini_batch=6, ratio="action", entropy_coefficient=0.1)),
        grpo(ratio="step", kl_coefficient=0.1).model_copy(update={"correction": "decoupled"}),
        grpo(kl_coefficient=0.1, average="actions", gamma=0.9),
    ],
    ids=["ppo-action", "grpo-step", "grpo-token"],
)
def test_tokens_that_were_not_executed_change_nothing(
    chunked: Path, experience: Experience, config: TrainerConfig
) -> None:
    """To the bit, in the metrics too; one token that was executed changes both."""
    found = []
    for given in (
        experience,
        with_other_tokens(experience, executed=False),
        with_other_tokens(experience, executed=True),
    ):
        one = learner(chunked, config)
        report = one.learn(stale(given))
        report.pop("seconds_inference")
        found.append((report, one.snapshot().tensors))
    (report, tensors), (same, alike), (other, unlike) = found
    assert same == report
    assert all(torch.equal(tensor, alike[name]) for name, tensor in tensors.items())
    assert other != report
    assert not all(torch.equal(tensor, unlike[name]) for name, tensor in tensors.items())


def test_the_factors_are_on_the_familys_layers_alone(chunked: Path, experience: Experience) -> None:
    """The projector of proprioception stays as it is, and yet each state's is read."""
    one = learner(chunked)
    projector = one.policy._model.proprio_projector
    before = copy.deepcopy(projector.state_dict())
    one.learn(experience)
    assert set(one.policy.layers) == set(policy_family(chunked).lora_layers())
    assert all(b.abs().max() > 0 for _, b in one.snapshot().factors.values())
    assert all(torch.equal(value, before[name]) for name, value in projector.state_dict().items())
    assert not any(parameter.requires_grad for parameter in projector.parameters())
    moved = [copy.deepcopy(trajectory) for trajectory in experience.trajectories]
    moved[1].steps[1].robot_state.proprio[2] += 0.2
    swapped = [copy.deepcopy(trajectory) for trajectory in experience.trajectories]
    step = swapped[1].steps[1]
    step.image, step.images[0] = step.images[0], step.image
    expected = logprobs_of(one, chunked, experience)
    for changed in (moved, swapped):
        found = logprobs_of(one, chunked, Experience(0, 1, changed))
        differs = np.abs(found - expected).max(axis=1) > 1e-6
        assert np.flatnonzero(differs).tolist() == [4]


def test_the_critic_gives_a_chunk_one_value(chunked: Path, experience: Experience) -> None:
    """From what the policy makes of all its cameras' patches; of a state that was cut off, too."""
    one, batch = learner(chunked), build_batch(experience)
    assert isinstance(one.algorithm, Ppo)
    seen = one._look(observations_of(one, chunked, experience), batch)
    assert seen.features.shape == (11 + 2, 64 + 2 * 2 * 4)
    torch.nn.init.normal_(one.algorithm.critic.head[-1].weight)
    values = one.algorithm.values(seen.features).double().numpy()
    assert np.ptp(values) > 0.01
    advantages, _ = batch_advantages(batch, values, gamma=0.9, gae_lambda=0.0)
    # The second episode: eight steps, then five until it was cut off.
    assert advantages[3] == pytest.approx(0.9**8 * values[4] - values[3])
    assert advantages[4] == pytest.approx(0.9**5 * values[11] - values[4])
    state = experience.trajectories[1].steps[1]
    shown = one.values(
        [state.image, *state.images], experience.trajectories[1].instruction, batch.proprio[4:5]
    )
    assert shown == pytest.approx([values[4]], abs=1e-5)


def test_a_run_goes_on_as_if_it_had_not_stopped(chunked: Path, experience: Experience) -> None:
    first, second = (learner(chunked, trainer_config(ppo=once(epochs=2))) for _ in range(2))
    first.learn(experience)
    second.restore(copy.deepcopy(first.snapshot().tensors))
    reports = [one.learn(stale(experience)) for one in (first, second)]
    for report in reports:
        report.pop("seconds_inference")
    assert reports[0] == reports[1]
    one, other = (each.snapshot().tensors for each in (first, second))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_server_that_answers_otherwise_is_refused(chunked: Path) -> None:
    spec = policy_family(chunked).spec
    served = policy_pb2.GetPolicyResponse(
        chunk=8, cameras=CAMERAS, proprio=8, center_crop=spec.center_crop
    )
    check_policy(served, spec, "", None)
    served.chunk = 5
    with pytest.raises(PublishError, match=r"answers 5 control steps .* trainer's policy 8 "):
        check_policy(served, spec, "", None)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["shard", "replicate"])
def test_two_ranks_learn_what_one_learns(
    chunked: Path, experience: Experience, tmp_path: Path, sharding: str
) -> None:
    """Frames of both cameras come from shared memory; an odd number of samples, prompts of
    different length.
    """
    for number, one in enumerate((experience, stale(experience))):
        (tmp_path / f"{number}.bin").write_bytes(one.to_bytes())
    rank_program.main(chunked, tmp_path, 7, "float32", sharding)
    arguments = (chunked, tmp_path, 2, "float32", sharding)
    ranks = Program(rank_program.main, *arguments, log=tmp_path / "log.txt", ranks=2)
    try:
        assert ranks.join(240) == 0, (tmp_path / "log.txt").read_text()[-4000:]
    finally:
        ranks.kill()
    alone, together = (json.loads((tmp_path / f"metrics-{n}.json").read_text()) for n in (1, 2))
    for expected, got in zip(alone, together, strict=True):
        assert expected.keys() == got.keys()
        for name in expected.keys() - {"seconds_inference"}:
            assert got[name] == pytest.approx(expected[name], abs=1e-5), name
    expected, got = (load_file(tmp_path / f"tensors-{n}.safetensors") for n in (1, 2))
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=1e-3)
