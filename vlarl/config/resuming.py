"""What may change when a run goes on: every key of a configuration is of one of three kinds.

    free           what is learned doesn't depend on it: places, speeds, what is kept and shown
    from there on  it changes what comes, and nothing that has been learned
    fixed          what has been learned would mean something else: it is refused

Checkpoints hold the fixed keys' values, their `terms`, so that one that was carried elsewhere isn't
taken for another. docs/configuration.md shows each key's kind, and a test that each has one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from vlarl.config import (
    AlgorithmConfig,
    AugmentationConfig,
    CriticConfig,
    CurriculumConfig,
    DataConfig,
    EnvConfig,
    EvaluationConfig,
    FitConfig,
    GroupsConfig,
    GrpoConfig,
    LoggingConfig,
    LoraConfig,
    PolicyConfig,
    PpoConfig,
    ProcessRewardConfig,
    QueueConfig,
    RewardDataConfig,
    RewardModelConfig,
    RewardSection,
    RlooConfig,
    RunConfig,
    SecurityConfig,
    SftConfig,
    TasksConfig,
    TrainerConfig,
)
from vlarl.config.base import Section, sections_in
from vlarl.config.libero import MAIN_CAMERA
from vlarl.errors import ConfigError

_SHOWN = 200
"""Characters of a value in an error."""

Terms = Mapping[str, object]
"""The fixed keys' values, as JSON has them."""


class OnResume(StrEnum):
    """What a key may do when a run goes on."""

    FREE = "free"
    AHEAD = "from there on"
    FIXED = "fixed"


@dataclass(frozen=True)
class Kind:
    """A key's kind; of a fixed one, what the run has learned by it."""

    on_resume: OnResume
    reason: str = ""


@dataclass(frozen=True)
class _Keys:
    """The keys that one class declares. One that is a section itself stands for all below it, and
    is left out where those have kinds of their own.
    """

    free: str = ""
    ahead: str = ""
    fixed: Mapping[str, str] = field(default_factory=dict)

    def kind(self, key: str) -> Kind | None:
        if key in self.fixed:
            return Kind(OnResume.FIXED, self.fixed[key])
        if key in self.ahead.split():
            return Kind(OnResume.AHEAD)
        return Kind(OnResume.FREE) if key in self.free.split() else None


_SCALING = "the factors were learned at this scale and of this size"
_STATISTICS = "the action tokens were learned in these units"
_PIXELS = "the policy and the critic learned what they see through it"
_HELD_OUT = "what was held out must never be learned from"
_JUDGED = "the verdicts were learned from labels made by it"

_KINDS: Mapping[type[Section], _Keys] = {
    RunConfig: _Keys(
        fixed={
            "name": "queue, weights and checkpoints belong to it",
            "seed": "the critic's projection and all that was drawn so far follow from it",
            "unnorm_key": _STATISTICS,
        },
    ),
    # What is trained on may grow and shrink; in another suite the same numbers are other tasks.
    TasksConfig: _Keys(
        ahead="indices max_actions",
        fixed={"suite": "the curriculum's memory and the run's curves are of its tasks"},
    ),
    CurriculumConfig: _Keys(ahead="kind tau window floor"),
    # A queue elsewhere is empty: what was outstanding is ordered again.
    QueueConfig: _Keys(
        free="url password_file tls_ca tls_certificate tls_key claim_after_seconds max_deliveries "
        "blobs"
    ),
    SecurityConfig: _Keys(
        free="token_file client_token_file client_calls_per_second client_burst tls_certificate "
        "tls_key tls_ca tls_client_ca tls_client_certificate tls_client_key"
    ),
    PolicyConfig: _Keys(
        free="addresses max_observations max_batch kv_cache_mib cpu_threads trainer_address "
        "catch_up_seconds",
        ahead="dtype exact_float32",
        fixed={
            "checkpoint": "the factors belong to its weights, wherever these lie",
            "center_crop": _PIXELS,
        },
    ),
    # Both profiles are the same task; evaluations of LIBERO's suites take the faithful one anyway.
    EnvConfig: _Keys(
        free="processes concurrent_steps bddl_directories recycle_episodes cached_tasks "
        "step_timeout_seconds construct_timeout_seconds simulator_restarts "
        "policy_patience_seconds external_processes external_idle_seconds",
        ahead="profile settle_steps replan_after",
        fixed={
            "cameras": _PIXELS,
            "render_size": _PIXELS,
            "crop": _PIXELS,
            "action_repeat": "an action was learned as a motion of so many control steps",
        },
    ),
    # The critic learns other returns as it learned the first: from what comes.
    RewardSection: _Keys(free="batch_trajectories", ahead="model success_reward"),
    ProcessRewardConfig: _Keys(
        free="watch_episodes warn_below stop_below batch_steps threads",
        ahead="checkpoint coefficient form dtype",
    ),
    TrainerConfig: _Keys(
        free="address logprob_gap_bound merged_check merged_digest rollout_timeout_seconds "
        "publish_timeout_seconds memory_gib sharding activation_checkpointing keep_checkpoints "
        "record_rollouts threads ranks",
        ahead="iterations episodes_per_iteration temperature dtype staleness correction "
        "correction_cap stop_at_success rollback rollback_rate",
        fixed={"algorithm": "its checkpoints hold what this algorithm learned"},
    ),
    AlgorithmConfig: _Keys(
        free="micro_batch micro_batch_tokens",
        ahead="learning_rate warmup_steps schedule ratio clip_low clip_high gamma epochs "
        "mini_batch kl_stop kl_coefficient max_grad_norm entropy_coefficient",
    ),
    PpoConfig: _Keys(ahead="gae_lambda time_limit whiten_advantages whiten_floor"),
    GroupsConfig: _Keys(
        ahead="keep_between max_attempts credit average",
        fixed={"group_size": "episodes that are out belong to groups of this size"},
    ),
    GrpoConfig: _Keys(ahead="divide_by_deviation deviation_floor"),
    RlooConfig: _Keys(),
    LoraConfig: _Keys(fixed={"rank": _SCALING, "alpha": _SCALING}),
    CriticConfig: _Keys(
        ahead="learning_rate clip gae_lambda epochs warmup_iterations warmup_epochs",
        fixed={
            "hidden": "the critic's weights have these sizes",
            "features": "the critic learned what these features mean",
            "patch_channels": "the critic's weights read so many numbers of a patch",
        },
    ),
    EvaluationConfig: _Keys(
        ahead="episodes_per_task at_start at_end every_iterations every_env_steps"
    ),
    # Curves that were shown stay where they are.
    LoggingConfig: _Keys(
        free="tensorboard wandb wandb_project wandb_entity wandb_group wandb_tags"
    ),
    SftConfig: _Keys(
        free="activation_checkpointing keep_checkpoints threads",
        ahead="input_sigma export dtype simulation",
        fixed={
            "name": "it is the run's id",
            "seed": "what is held out, and the samples' order, follow from it",
            "checkpoint": "training began with its weights, wherever these lie",
            "mode": "it says what the checkpoints' weights are",
            "target_sigma": "the lowest held-out loss so far was measured with it",
            "model": "training began with it",
            "family": "it says what the checkpoints' weights are",
        },
    ),
    DataConfig: _Keys(
        free="cache_gib",
        fixed={
            "datasets": "samples and units of actions are theirs, wherever they lie",
            "held_out": _HELD_OUT,
            "held_out_samples": "the lowest held-out loss so far was measured on these",
            "statistics": _STATISTICS,
            "range_floor": _STATISTICS,
            "partial_chunks": "what is learned from and measured on follows from it",
        },
    ),
    AugmentationConfig: _Keys(
        ahead="brightness contrast saturation hue",
        fixed={"random_crop": "the checkpoint asks for the centre crop by it"},
    ),
    FitConfig: _Keys(
        free="micro_batch log_every",
        ahead="steps mini_batch learning_rate schedule warmup_steps weight_decay max_grad_norm "
        "evaluate_every",
    ),
    RewardModelConfig: _Keys(
        free="activation_checkpointing keep_checkpoints threads",
        ahead="export dtype",
        fixed={
            "name": "it is the run's id",
            "seed": "what is held out, and the samples' order, follow from it",
            "checkpoint": "training began with its weights, wherever these lie",
            "policy": "its frames and action tokens are scored, wherever it lies",
            "mode": "it says what the checkpoints' weights are",
            "labels": _JUDGED,
        },
    ),
    RewardDataConfig: _Keys(
        free="cache_gib",
        ahead="perturbed",
        fixed={
            "datasets": "samples and labels are theirs, wherever they lie",
            "held_out": _HELD_OUT,
            "held_out_samples": "the lowest held-out loss so far was measured on these",
            "tail_seconds": _JUDGED,
        },
    ),
}

CONTENTS = frozenset({"policy.checkpoint", "checkpoint", "policy", "data.datasets"})
"""Fixed keys that name folders: what these hold is fixed, and where they lie is free."""

UNITS, CENTER_CROP, SCENES = "action units", "centre crop", "scenes"
FAMILY = "policy family"
"""Terms that are no keys: a policy's files and a suite's say them."""

_MEANINGS = {
    UNITS: Kind(OnResume.FIXED, _STATISTICS),
    CENTER_CROP: Kind(OnResume.FIXED, _PIXELS),
    FAMILY: Kind(OnResume.FIXED, "what was learned is of what it sees and of how it answers"),
    SCENES: Kind(OnResume.FIXED, "in other scenes the same numbers are other tasks"),
}


_UNSET: Mapping[str, object] = {"env.cameras": [MAIN_CAMERA]}
"""What keys stand for that aren't set, as runs of before have it."""


def kinds(root: type[Section]) -> dict[str, Kind | None]:
    """Each key's kind, by section.key; None: it hasn't been given one."""
    return dict(_walk(root, "", None))


def _walk(
    section: type[Section], prefix: str, above: Kind | None
) -> Iterator[tuple[str, Kind | None]]:
    for name, described in section.model_fields.items():
        kind = above or _own_kind(section, name)
        inside = sections_in(described.annotation)
        for inner in inside:
            yield from _walk(inner, f"{prefix}{name}.", kind)
        if not inside:
            yield prefix + name, kind


def _own_kind(section: type[Section], key: str) -> Kind | None:
    """The kind that the section's class, or one that it inherits from, gives its key."""
    tables = (_KINDS[one] for one in section.__mro__ if one in _KINDS)
    return next((kind for table in tables if (kind := table.kind(key))), None)


def terms(config: Section) -> dict[str, object]:
    """The fixed keys' values, those of `CONTENTS` apart: what a folder holds has a digest."""
    dumped = config.model_dump(mode="json")
    found = {}
    for key, kind in kinds(type(config)).items():
        if kind is not None and kind.on_resume is OnResume.FIXED and key not in CONTENTS:
            value = _at(dumped, key)
            found[key] = _UNSET.get(key) if value is None else value
    return found


def check_algorithm(where: object, before: object, now: object) -> None:
    """`check_terms` of the one key under which others' names change, before these are looked at.

    Args:
        where: the run, for the error.
        before: the tables of the file that was saved with it.
        now: the same with what is asked for laid over them.

    Raises:
        ConfigError: it has another value.
    """
    key = "trainer.algorithm"
    saved, asked = ({key: _at(tables, key)} for tables in (before, now))
    if saved[key] is not None:
        check_terms(RunConfig, where, saved, asked, "began")


def _at(table: object, key: str) -> object:
    for part in key.split("."):
        table = table.get(part) if isinstance(table, Mapping) else None
    return table


def check_terms(
    root: type[Section], where: object, before: Terms, now: Terms, did: str = "has learned"
) -> None:
    """Makes sure that what was learned keeps its meaning.

    Args:
        root: what the configuration is of.
        where: the run or the checkpoint, for the error.
        before: terms of what was learned; those that it doesn't know aren't compared.
        now: what is asked for.
        did: what was done so far, for the error.

    Raises:
        ConfigError: a fixed key has another value.
    """
    known = kinds(root) | _MEANINGS
    for key, asked in now.items():
        if key not in before or before[key] == asked:
            continue
        kind = known.get(key)
        reason = f" ({kind.reason})" if kind is not None else ""
        raise ConfigError(
            f"{where} {did} with {_value(key, before[key])}, which a run keeps{reason}, not "
            f"with {_value(key, asked)}; leave it so, or begin a new run"
        )


def _value(key: str, value: object) -> str:
    if value is None:
        return f"no {key}"
    if key in CONTENTS:
        return f"another {key} ({str(value)[:12]})"
    text = json.dumps(value, ensure_ascii=False)
    return f"{key} = {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"
