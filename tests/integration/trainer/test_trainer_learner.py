"""One iteration's learning, against the mistakes that public code has made."""

import copy
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from benchmarks.operations import Operations, least  # noqa: E402
from tests.integration.trainer.trainer_samples import (  # noqa: E402
    ActingPolicy,
    made_up_trajectories,
    overflowing,
    steep_config,
    trainer_config,
)
from vlarl.config import CriticConfig, LoraConfig, PpoConfig, TrainerConfig  # noqa: E402
from vlarl.images import Frame  # noqa: E402
from vlarl.learning.checkpoints import ResumeError  # noqa: E402
from vlarl.learning.optimizer import DivergedError  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl.learning.trainable import States  # noqa: E402
from vlarl.models.openvla.lora import lora_layers  # noqa: E402
from vlarl.models.openvla.processor import Processor  # noqa: E402
from vlarl.rollout.v1 import rollout_pb2  # noqa: E402
from vlarl_trainer.algorithms.critic import Critic  # noqa: E402
from vlarl_trainer.algorithms.ppo import Ppo, batch_advantages  # noqa: E402
from vlarl_trainer.algorithms.surrogate import approximate_kl  # noqa: E402
from vlarl_trainer.batch import Experience, Observations, build_batch  # noqa: E402
from vlarl_trainer.learner import Learner  # noqa: E402
from vlarl_trainer.parity import ParityError  # noqa: E402

pytestmark = pytest.mark.torch
ALONE = Ranks.from_environment()


def learner(
    checkpoint: Path, config: TrainerConfig | None = None, success_reward: float = 1.0
) -> Learner:
    return Learner(
        checkpoint,
        config or trainer_config(),
        center_crop=False,
        seed=3,
        ranks=ALONE,
        success_reward=success_reward,
    )


@pytest.fixture(scope="module")
def experience(checkpoint: Path) -> Experience:
    acting = ActingPolicy(checkpoint, learner(checkpoint).policy, temperature=1.3)
    return Experience(0, 1, made_up_trajectories(acting, 4))


def ppo(**changes: object) -> PpoConfig:
    return trainer_config().ppo.model_copy(update=changes)


def largest_difference(one: Learner, other: Learner) -> float:
    first, second = one.snapshot().tensors, other.snapshot().tensors
    assert first.keys() == second.keys()
    return max((first[key] - second[key]).abs().max().item() for key in first)


def test_factors_sit_on_exactly_the_layers_that_the_forward_pass_uses(
    checkpoint: Path, experience: Experience
) -> None:
    one = learner(checkpoint)
    named = one.policy.named_parameters()
    assert {name[:-2] for name in named} == set(lora_layers(one.policy.config))
    trainable = {id(p) for p in one.policy._model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in named.values()}
    one.learn(experience)
    # Had a layer no part in the passes, its B would still be zero.
    assert all(b.abs().max() > 0 for _, b in one.snapshot().factors.values())


def test_a_checkpoint_s_tensors_have_the_names_that_they_always_had(
    checkpoint: Path, experience: Experience
) -> None:
    """Runs of earlier versions are gone on from, and others' tools read the files."""
    one = learner(checkpoint)
    fresh = set(one.snapshot().tensors)
    factors = {f"{layer}.{factor}" for layer in lora_layers(one.policy.config) for factor in "AB"}
    critic = {"0.mean", "0.scale", "0.known", "1.weight", "1.bias", "3.weight", "3.bias"}
    held = {f"policy.{name}" for name in factors} | {f"critic.{name}" for name in critic}
    assert fresh == held | {"policy_steps"}
    one.learn(experience)
    learned = {f"policy_optimizer.{name}" for name in factors}
    learned |= {f"critic_optimizer.{name}" for name in critic if name[0] != "0"}
    moments = {f"{name}.{m}" for name in learned for m in ("exp_avg", "exp_avg_sq", "step")}
    assert set(one.snapshot().tensors) == fresh | moments


def test_base_weights_never_change(checkpoint: Path, experience: Experience) -> None:
    one = learner(checkpoint)
    before = {n: p.clone() for n, p in one.policy._model.named_parameters() if "lora_" not in n}
    one.learn(experience)
    after = dict(one.policy._model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {f"{layer}.weight" for layer in one.policy.layers}
    one.policy._hold_weights()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{layer}.weight" for layer in one.policy.layers}
    seen(one, observations_of(one, checkpoint, experience), factors=False)
    assert all(torch.equal(before[name], after[name]) for name in before)


def observations_of(one: Learner, checkpoint: Path, experience: Experience) -> Observations:
    batch = build_batch(experience)
    processor = Processor(checkpoint, one.policy.config, center_crop=False)
    return Observations(batch.frames, batch.instructions, processor, ALONE.device)


def seen(one: Learner, observations: Observations, *, factors: bool, last: bool = False) -> States:
    """What the policy makes of the first two states, or of the last two, in which episodes were cut
    off, whatever is done in them.
    """
    any_action = torch.full((2, 7), one.policy.config.spec.action_ids.start)
    states = np.arange(2) + (len(observations) - 2 if last else 0)
    return one.policy.look(observations[states], any_action, 1.0, factors=factors)[0]


def critic_of_ppo(one: Learner) -> Critic:
    assert isinstance(one.algorithm, Ppo)
    return one.algorithm.critic


def test_features_ignore_the_factors(checkpoint: Path, experience: Experience) -> None:
    one = learner(checkpoint)
    observations = observations_of(one, checkpoint, experience)
    before = seen(one, observations, factors=False)
    one.learn(experience)
    for early, late in zip(before, seen(one, observations, factors=False), strict=True):
        assert torch.equal(early, late)
        assert early.std(dim=0).max() > 1e-3, "the critic sees the same thing in every state"


def test_the_policys_own_features_are_the_bases_until_it_has_learned(
    checkpoint: Path, experience: Experience
) -> None:
    """B is zero at first. They come from the log-probs' pass, and final states are among them."""
    own, base = (
        learner(checkpoint, trainer_config(critic=critic_of(features)))
        for features in ("policy", "base")
    )
    batch = build_batch(experience)
    processor = Processor(checkpoint, own.policy.config, center_crop=False)
    observations = Observations(batch.frames, batch.instructions, processor, ALONE.device)
    looked, expected = (one._look(observations, batch) for one in (own, base))
    assert len(looked.features) == len(batch.frames) > len(batch.token_ids)
    for name in ("features", "logprobs", "entropy"):
        ours, theirs = getattr(looked, name), getattr(expected, name)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(expected.reference, expected.logprobs, atol=1e-5, rtol=0)
    reports = [one.learn(experience) for one in (own, base)]
    for name in ("advantage_deviation", "policy_loss", "entropy", "value_loss"):
        assert reports[0][name] == pytest.approx(reports[1][name], abs=1e-4), name
    learned = own._look(observations, batch).features
    assert (learned - looked.features).abs().max() > 1e-3
    shown = own.algorithm.features(seen(own, observations, factors=True))
    torch.testing.assert_close(shown, learned[:2], atol=1e-5, rtol=0)


def critic_of(features: str) -> CriticConfig:
    return trainer_config().critic.model_copy(update={"features": features})


@pytest.mark.parametrize(("features", "passes"), [("policy", 1), ("base", 2)])
def test_no_pass_is_computed_twice(
    checkpoint: Path, experience: Experience, features: str, passes: int
) -> None:
    """One pass without gradient for each action and one with gradient in each epoch, and at most a
    tenth more operations than the least possible; the base policy's features are a pass more.
    """
    batches = {"epochs": 2, "mini_batch": 12, "micro_batch": 6, "time_limit": "terminal"}
    config = trainer_config(ppo=ppo(**batches), critic=critic_of(features))
    one = learner(checkpoint, config)
    processor = Processor(checkpoint, one.policy.config, center_crop=False)
    needed = before = 0  # the base's pass gives log-probs, too, for the KL from where it began
    for trajectory in experience.trajectories:
        prompt = len(processor.prompt(trajectory.instruction))
        own = least(one.policy.config, config.lora.rank, prompt, action_tokens=7)
        needed += len(trajectory.steps) * (own.forward + 2 * own.update)
        before += len(trajectory.steps) * own.forward * (passes - 1)
    with Operations() as counted:
        one.learn(experience)
    assert 1.0 <= counted.of_the_policy / (needed + before) < 1.1


class Attention(TorchDispatchMode):
    """Notes whether each attention was causal, and its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[object, object]] = []

    def __torch_dispatch__(
        self,
        func: "torch._ops.OpOverload",
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        aten, named = torch.ops.aten, kwargs or {}
        if func.overloadpacket is aten._scaled_dot_product_flash_attention_for_cpu:
            causal = args[4] if len(args) > 4 else False
            self.seen.append((causal, named.get("attn_mask")))
        return func(*args, **named)


def test_attention_needs_no_mask(checkpoint: Path, experience: Experience) -> None:
    """The kernels that never hold all scores take a flag; any mask would rule them out."""
    one = learner(checkpoint)
    batch = build_batch(experience)
    processor = Processor(checkpoint, one.policy.config, center_crop=False)
    observations = Observations(batch.frames, batch.instructions, processor, ALONE.device)
    mixed = observations[np.arange(len(batch.token_ids))]
    assert len(mixed.prompt_lengths.unique()) > 1
    with Attention() as attention:
        one.policy.logprobs(mixed, torch.from_numpy(batch.token_ids), 1.0)
    towers = sum(tower.depth - 1 for tower in one.policy.config.towers)
    layers = one.policy.config.text.num_hidden_layers
    assert attention.seen == [(False, None)] * towers + [(True, None)] * layers


def test_old_logprobs_stay_those_of_the_weights_that_acted(
    checkpoint: Path, experience: Experience
) -> None:
    """Overwritten by the new ones, the ratio would be 1 in every pass and KL exactly 0."""
    report = learner(checkpoint, trainer_config(ppo=ppo(epochs=4))).learn(experience)
    assert report["approximate_kl"] > 1e-5
    assert report["clip_fraction"] > 0


def test_the_first_mini_batch_has_ratio_one(checkpoint: Path, experience: Experience) -> None:
    report = learner(checkpoint, trainer_config(ppo=ppo(epochs=1, mini_batch=10**6))).learn(
        experience
    )
    assert report["approximate_kl"] < 1e-9
    assert report["clip_fraction"] == 0
    assert report["policy_steps"] == 1


@pytest.mark.parametrize("ratio", ["action", "token"])
def test_micro_batch_size_does_not_change_the_update(
    checkpoint: Path, experience: Experience, ratio: str
) -> None:
    learners = [
        learner(checkpoint, trainer_config(ppo=ppo(micro_batch=micro, mini_batch=7, ratio=ratio)))
        for micro in (1, 3, 7)
    ]
    reports = [one.learn(experience) for one in learners]
    assert reports[0]["policy_steps"] == reports[1]["policy_steps"] == reports[2]["policy_steps"]
    for other, report in zip(learners[1:], reports[1:], strict=True):
        assert largest_difference(learners[0], other) < 2e-5
        assert report["policy_loss"] == pytest.approx(reports[0]["policy_loss"], abs=1e-5)


def test_one_optimizer_step_a_mini_batch(checkpoint: Path, experience: Experience) -> None:
    samples = len(build_batch(experience).token_ids)
    report = learner(checkpoint, trainer_config(ppo=ppo(micro_batch=2, mini_batch=8))).learn(
        experience
    )
    assert report["policy_steps"] == 2 * -(-samples // 8)


def test_the_kl_bound_stops_before_a_step(checkpoint: Path, experience: Experience) -> None:
    config = trainer_config(ppo=ppo(epochs=1, mini_batch=8, kl_stop=1e-12))
    bounded = learner(checkpoint, config)
    report = bounded.learn(experience)
    assert report["kl_stopped"] == 1.0
    assert report["largest_kl"] > 1e-12
    assert report["largest_kl"] >= report["approximate_kl"]
    # The first mini-batch has ratio 1 up to rounding; the second sees the first step's KL.
    assert report["policy_steps"] <= 1
    free = learner(checkpoint, trainer_config(ppo=ppo(epochs=1, mini_batch=8)))
    assert free.learn(experience)["policy_steps"] > 1
    steps = bounded.snapshot().tensors["policy_steps"]
    assert int(steps) == report["policy_steps"], "the optimizer stepped after the stop"


def test_warm_up_moves_the_critic_and_not_the_policy(
    checkpoint: Path, experience: Experience
) -> None:
    critic = CriticConfig(hidden=(16,), learning_rate=1e-2, warmup_iterations=1, warmup_epochs=3)
    one = learner(checkpoint, trainer_config(critic=critic))
    before = copy.deepcopy(one.snapshot().tensors)
    report = one.learn(experience)
    after = one.snapshot().tensors
    assert "policy_loss" not in report
    for key, value in before.items():
        assert torch.equal(value, after[key]) == (not key.startswith("critic.")), key


def test_a_wrong_server_log_prob_stops_the_run(checkpoint: Path, experience: Experience) -> None:
    trajectories = copy.deepcopy(list(experience.trajectories))
    trajectories[2].steps[1].action.logprobs[4] -= 0.01
    trajectories[2].spec.episode_id = "the third"
    one = learner(checkpoint)
    with pytest.raises(ParityError, match=r"99\.9 % are within 0\.01, more than 0\.0001") as found:
        one.learn(Experience(0, 1, trajectories))
    answers = sum(len(trajectory.steps) for trajectory in trajectories)
    assert (
        f"1 of {7 * answers} tokens, in 1 of {answers} answers, are more than 0.0001 apart, "
        "the largest difference is 0.01, in answer 1 of episode the third. Do both use the same "
    ) in str(found.value)


def test_a_first_pass_that_was_wrong_is_told_from_a_server_that_is(
    checkpoint: Path, experience: Experience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame is black when it is first decoded."""
    one = learner(checkpoint)
    sound, seen = one._processor.frame, set[bytes]()

    def frame(encoded: bytes) -> Frame:
        if encoded in seen:
            return sound(encoded)
        seen.add(encoded)
        return np.zeros_like(sound(encoded))

    monkeypatch.setattr(one._processor, "frame", frame)
    before = one.snapshot().tensors
    with pytest.raises(ParityError, match=r"away from its second: it was wrong\. ") as found:
        one.learn(experience)
    numbers = found.value.disagreement
    assert np.abs(numbers.server - numbers.again).max() < 1e-4
    assert (np.abs(numbers.server - numbers.trainer) > 1e-4).any()
    after = one.snapshot().tensors
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_another_temperature_is_noticed(checkpoint: Path, experience: Experience) -> None:
    with pytest.raises(ParityError, match="temperature"):
        learner(checkpoint, trainer_config(temperature=1.0)).learn(experience)


def test_stale_actions_keep_the_log_probs_of_the_weights_that_acted(
    checkpoint: Path, experience: Experience
) -> None:
    """The trainer's weights moved on, so only the server knows what acted."""
    one = learner(checkpoint, trainer_config(ppo=ppo(epochs=1, mini_batch=10**6)))
    one.learn(experience)
    report = one.learn(Experience(1, 2, experience.trajectories))
    assert report["logprob_gap"] == 0.0, "no action was fresh"
    # With ratios of 1 it would be minus the mean of the whitened advantages, which is 0.
    assert abs(report["policy_loss"]) > 1e-4
    assert report["approximate_kl"] < 1e-9, "before its first step an update hasn't moved anything"


def test_the_kl_bound_leaves_out_what_the_last_update_did(
    checkpoint: Path, experience: Experience
) -> None:
    config = trainer_config(ppo=ppo(epochs=1, mini_batch=10**6))
    one = learner(checkpoint, config)
    one.learn(experience)
    batch = build_batch(experience)
    processor = Processor(checkpoint, one.policy.config, center_crop=False)
    observations = Observations(batch.frames, batch.instructions, processor, ALONE.device)
    now = one._look(observations, batch).logprobs
    drift = approximate_kl((now - torch.from_numpy(batch.server_logprobs)).sum(dim=1)).mean()
    assert drift > 1e-5
    bounded = learner(checkpoint, trainer_config(ppo=ppo(mini_batch=10**6, kl_stop=drift / 2)))
    bounded.restore(one.snapshot().tensors)
    report = bounded.learn(Experience(1, 2, experience.trajectories))
    assert report["policy_steps"] == 1, "stopped for what an earlier update did"


def test_the_raw_deviation_is_told_and_the_floor_holds(
    checkpoint: Path, experience: Experience
) -> None:
    """Half of the deviation as a floor changes nothing; twice of it halves the advantages."""
    batch = build_batch(experience)
    trainer = trainer_config()
    raw, _ = batch_advantages(
        batch, np.zeros(len(batch.frames)), trainer.ppo.gamma, trainer.ppo.gae_lambda
    )
    learned = {}
    for share in (0.0, 0.5, 2.0):
        once = ppo(whiten_floor=share * raw.std(), epochs=1, mini_batch=10**6, max_grad_norm=1e9)
        one = learner(checkpoint, trainer_config(ppo=once))
        report = one.learn(experience)
        assert report["advantage_deviation"] == pytest.approx(raw.std())
        learned[share] = one.snapshot().tensors
    assert all(torch.equal(tensor, learned[0.5][key]) for key, tensor in learned[0.0].items())
    # The floor is a share of what a success is worth.
    half = ppo(whiten_floor=raw.std(), epochs=1, mini_batch=10**6, max_grad_norm=1e9)
    worth_two = learner(checkpoint, trainer_config(ppo=half), success_reward=2.0)
    worth_two.learn(experience)
    assert all(
        torch.equal(tensor, learned[2.0][key])
        for key, tensor in worth_two.snapshot().tensors.items()
    )
    # The first step's gradient is in proportion to the advantages, and the first moment to it.
    moments = [key for key in learned[0.0] if key.startswith("policy") and key.endswith("exp_avg")]
    assert moments
    for key in moments:
        torch.testing.assert_close(2 * learned[2.0][key], learned[0.0][key])


def test_truncated_episodes_bootstrap_and_successes_do_not(experience: Experience) -> None:
    batch = build_batch(experience)
    values = np.zeros(len(batch.frames))
    values[len(batch.token_ids) :] = 5.0
    advantages, _ = batch_advantages(batch, values, gamma=1.0, gae_lambda=1.0)
    limited, _ = batch_advantages(batch, values, gamma=1.0, gae_lambda=1.0, limit_is_terminal=True)
    for episode, trajectory in zip(batch.episodes, experience.trajectories, strict=True):
        success = trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
        assert episode.terminal == success
        assert advantages[episode.start] == (1.0 if success else 5.0)
        assert limited[episode.start] == (1.0 if success else 0.0)


def test_the_step_limit_may_count_as_failure(checkpoint: Path, experience: Experience) -> None:
    critic = CriticConfig(hidden=(16,), learning_rate=1e-2, clip=0.0, epochs=20)
    values = {}
    for time_limit in ("bootstrap", "terminal"):
        config = trainer_config(critic=critic, ppo=ppo(gamma=1.0, time_limit=time_limit))
        one = learner(checkpoint, config)
        # It begins by thinking well of every state; where an episode is cut off, nothing objects.
        torch.nn.init.constant_(critic_of_ppo(one).head[-1].bias, 5.0)
        for _ in range(3):
            one.learn(experience)
        observations = observations_of(one, checkpoint, experience)
        ends = one.algorithm.features(seen(one, observations, factors=False, last=True))
        values[time_limit] = critic_of_ppo(one).values(ends).numpy()
    assert np.mean(values["terminal"]) < np.mean(values["bootstrap"])


def test_the_critics_own_lambda_leaves_the_advantages_alone(
    checkpoint: Path, experience: Experience
) -> None:
    critic = CriticConfig(hidden=(16,), learning_rate=1e-2, clip=0.0, epochs=20)
    learners = [
        learner(checkpoint, trainer_config(critic=critic.model_copy(update={"gae_lambda": own})))
        for own in (None, 1.0)
    ]
    for one in learners:
        one.learn(experience)
    one, other = learners
    factors = [list(each.snapshot().factors.values()) for each in learners]
    torch.testing.assert_close(factors[0], factors[1], rtol=0, atol=0)
    weights = [critic_of_ppo(each).head[1].weight for each in (one, other)]
    assert not torch.equal(*weights)


def test_a_snapshot_restores_everything(checkpoint: Path, experience: Experience) -> None:
    first, second = learner(checkpoint), learner(checkpoint)
    first.learn(experience)
    second.restore(copy.deepcopy(first.snapshot().tensors))
    assert largest_difference(first, second) == 0
    acting = ActingPolicy(checkpoint, first.policy, temperature=1.3)
    following = Experience(1, 2, made_up_trajectories(acting, 3, iteration=1))
    one, other = first.learn(following), second.learn(following)
    for report in (one, other):
        report.pop("seconds_inference")
    assert one == other
    assert largest_difference(first, second) == 0


@pytest.mark.parametrize(
    ("changes", "section"),
    [
        ({"critic": CriticConfig(hidden=(24,))}, "trainer.critic"),
        ({"critic": CriticConfig(hidden=(16, 16))}, "trainer.critic"),
        ({"lora": LoraConfig(rank=5)}, "trainer.lora"),
    ],
)
def test_a_snapshot_of_another_size_is_refused(
    checkpoint: Path, changes: dict[str, object], section: str
) -> None:
    before = learner(checkpoint, trainer_config(critic=CriticConfig(hidden=(16,)))).snapshot()
    other = learner(checkpoint, trainer_config(**changes))
    kept = copy.deepcopy(other.snapshot().tensors)
    with pytest.raises(ResumeError, match=rf"doesn't fit .*\[{section}\]"):
        other.restore(before.tensors)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in other.snapshot().tensors.items())


def test_rewarded_actions_become_likelier_and_the_others_less(
    checkpoint: Path, experience: Experience
) -> None:
    trajectories = copy.deepcopy(list(experience.trajectories))
    rewarded = []
    for trajectory in trajectories:
        chosen = [bool(step.action.token_ids[0] % 2) for step in trajectory.steps]
        trajectory.scores.total[:] = [float(good) for good in chosen]
        rewarded += chosen
    one = learner(checkpoint, trainer_config(ppo=ppo(epochs=4, gamma=0.01)))
    batch = build_batch(experience)
    processor = Processor(checkpoint, one.policy.config, center_crop=False)
    observations = Observations(batch.frames, batch.instructions, processor, ALONE.device)
    before = one._look(observations, batch).logprobs
    one.learn(Experience(0, 1, trajectories))
    after = one._look(observations, batch).logprobs
    change = (after - before).sum(dim=1).numpy()
    good = np.array(rewarded)
    assert change[good].mean() > 0.02
    assert change[~good].mean() < -0.02


def test_an_infinite_gradient_of_a_finite_loss_is_refused_before_its_step(
    checkpoint: Path, experience: Experience
) -> None:
    one = learner(checkpoint, steep_config())
    one.learn(experience)  # so that there are moments that could be spoiled
    before = copy.deepcopy(one.snapshot().tensors)
    gradients: list[torch.Tensor] = []
    for factor in one.policy.named_parameters().values():
        factor.register_hook(gradients.append)
    spoiled = Experience(1, 2, overflowing(experience.trajectories))
    with pytest.raises(
        DivergedError, match=r"the policy: the gradient is not finite .*ppo\.learning_rate"
    ):
        one.learn(spoiled)
    assert not all(gradient.isfinite().all() for gradient in gradients), "nothing overflowed"
    after = one.snapshot().tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    left = [factor.grad for factor in one.policy.named_parameters().values()]
    assert not any(gradient.any() for gradient in left if gradient is not None)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.3), ("float16", 0.05)])
def test_sixteen_bits_learn_on_float32_factors(
    checkpoint: Path, experience: Experience, dtype: str, bound: float
) -> None:
    one = learner(checkpoint, trainer_config(dtype=dtype))
    report = one.learn(experience)
    assert report["overflowed_steps"] == 0
    assert 0 < report["logprob_gap"] < bound, "the server of these log-probs computed in float32"
    assert report["approximate_kl"] > 1e-5
    assert {p.dtype for p in one.policy.named_parameters().values()} == {torch.float32}
    assert {p.dtype for n, p in one.policy._model.named_parameters() if "lora_" not in n} == {
        getattr(torch, dtype)
    }


def grouped(experience: Experience) -> Experience:
    """The same episodes in two groups of one success and one failure each."""
    found = [copy.deepcopy(one) for one in experience.trajectories]
    for number, one in enumerate(found):
        one.spec.group_id = f"run:00000:0:{number // 2:04d}"
    return Experience(experience.iteration, experience.version, found)


def group_config(algorithm: str, **changes: object) -> TrainerConfig:
    keys = {"learning_rate": 2e-3, "epochs": 2, "mini_batch": 8, "micro_batch": 3, "kl_stop": 0.0}
    return trainer_config(
        algorithm=algorithm,
        episodes_per_iteration=4,
        ppo=PpoConfig(),
        critic=CriticConfig(),
        **{algorithm: keys | {"group_size": 2} | changes},
    )


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_groups_learn_without_a_critic(
    checkpoint: Path, experience: Experience, algorithm: str
) -> None:
    """No pass for its features, none of its weights in the checkpoint; successes become likelier
    and failures less likely.
    """
    config = group_config(algorithm, mini_batch=10**6, micro_batch=6, epochs=1)
    one, groups = learner(checkpoint, config), grouped(experience)
    batch = build_batch(groups)
    processor = Processor(checkpoint, one.policy.config, center_crop=False)
    needed = 0
    for trajectory in groups.trajectories:
        prompt = len(processor.prompt(trajectory.instruction))
        own = least(one.policy.config, config.lora.rank, prompt, action_tokens=7)
        needed += len(trajectory.steps) * (own.forward + own.update)
    with Operations() as counted:
        report = one.learn(groups)
    assert 1.0 <= counted.of_the_policy / needed < 1.1
    assert not {"value_loss", "reference_kl"} & report.keys()
    assert report["policy_steps"] == 1
    prefixes = {name.split(".")[0] for name in one.snapshot().tensors}
    assert prefixes == {"policy", "policy_optimizer", "policy_steps"}
    after = one._look(observations_of(one, checkpoint, groups), batch).logprobs
    moved = (after.numpy() - batch.server_logprobs).sum(axis=1)
    success = np.concatenate([[e.terminal] * (e.stop - e.start) for e in batch.episodes])
    assert moved[success].mean() > 0 > moved[~success].mean()


def test_groups_that_all_went_alike_change_nothing(
    checkpoint: Path, experience: Experience
) -> None:
    """Not even by the moments of the iteration before."""
    one, groups = learner(checkpoint, group_config("grpo")), grouped(experience)
    one.learn(groups)
    before = one.snapshot().tensors
    alike = stale(groups)
    for trajectory in alike.trajectories:
        trajectory.scores.total[:] = [0.0] * len(trajectory.steps)
    report = one.learn(alike)
    assert report["advantage_deviation"] == 0.0
    assert "policy_steps" not in report
    after = one.snapshot().tensors
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_rate_of_zero_changes_nothing(checkpoint: Path, experience: Experience) -> None:
    """Whatever the KL and the clip fraction then show is a fault of what comes before a step."""
    configs = [trainer_config(ppo=ppo(learning_rate=0.0)), group_config("grpo", learning_rate=0.0)]
    for config in configs:
        one = learner(checkpoint, config)
        report = one.learn(grouped(experience))
        assert report["policy_steps"] > 0
        assert report["clip_fraction"] == report["start_outside_clip"] == 0.0
        assert max(report["largest_kl"], report["start_k3"]) < 1e-6


def test_the_policy_may_be_held_to_where_training_began(
    checkpoint: Path, experience: Experience
) -> None:
    """The penalty counts from the second iteration on, when there is a distance."""
    groups = grouped(experience)
    distances = []
    for coefficient in (1e-9, 10.0):
        config = group_config("grpo", kl_coefficient=coefficient, learning_rate=2e-4)
        one = learner(checkpoint, config)
        reports = []
        for _ in range(4):
            reports.append(one.learn(stale(groups) if reports else groups))
        assert reports[0]["reference_kl"] == pytest.approx(0.0, abs=1e-6)
        distances.append(reports[-1]["reference_kl"])
    assert distances[1] < 0.5 * distances[0]


def stale(experience: Experience) -> Experience:
    """For a trainer whose weights have moved on: the log-probs must not be compared."""
    return Experience(experience.iteration, experience.version + 1, experience.trajectories)


def test_the_decoupled_correction_goes_from_the_updates_start(
    checkpoint: Path, experience: Experience
) -> None:
    """However old the actions are, nothing is clipped at the first step."""
    clipped = {}
    for kind in ("server", "decoupled"):
        config = trainer_config(correction=kind, ppo=ppo(epochs=1, mini_batch=10**6))
        one = learner(checkpoint, config)
        one.learn(experience)
        report = one.learn(stale(experience))
        assert report["start_outside_clip"] > 0.1
        clipped[kind] = report["clip_fraction"]
    assert clipped["server"] > 0.0 == clipped["decoupled"]
