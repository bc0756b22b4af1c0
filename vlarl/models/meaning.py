"""What files say that gives a run's numbers their meaning, beside its configuration and its
policy's weights: the units of actions and the crop, what the policy sees and answers, and the
scenes of a suite of one's own.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

from vlarl.config import ConfigError, RewardModelConfig, RunConfig, Section, SftConfig
from vlarl.config.libero import ACTION_DIM, base_suite
from vlarl.config.resuming import CENTER_CROP, FAMILY, SCENES, UNITS
from vlarl.config.suites import bddl_files
from vlarl.models.openvla.oft import FAMILY_FILE
from vlarl.models.registry import policy_spec
from vlarl.models.spec import PolicySpec
from vlarl.models.statistics import ActionStats
from vlarl.weights.folder import read_json


def chosen_unnorm_key(config: RunConfig, model: PolicySpec) -> str:
    """The statistics that un-normalise actions: those named, the suite's, or the only ones.

    Raises:
        ConfigError: there are none of this name, or several, and none is the suite's; or they
            are of another arm's actions.
    """
    if model.action_dim != ACTION_DIM:
        raise ConfigError(
            f"{model.name}: its actions have {model.action_dim} dimensions, and the simulated arm "
            f"takes {ACTION_DIM}"
        )
    if config.unnorm_key:
        return model.unnorm_key(config.unnorm_key)
    for name in (config.tasks.suite, base_suite(config.tasks.suite), ""):
        with contextlib.suppress(ValueError):
            return model.unnorm_key(name)
    raise ConfigError(
        f"set unnorm_key: {model.statistics_file} of the checkpoint has statistics for "
        f"{', '.join(sorted(model.norm_stats))}, none for {config.tasks.suite} (those of a "
        "fine-tuning run lie in its dataset_statistics.json)"
    )


def meaning_terms(config: Section) -> dict[str, object]:
    """The terms that a run's files add to those of its configuration.

    Weights have a digest of their own; one and the same weights with other statistics move the arm
    otherwise. What the configuration decides alone isn't among them, and neither is what can't be
    read: whoever needs it says so.
    """
    terms = _policy_terms(config)
    if isinstance(config, RunConfig) and (scenes := _scenes(config)):
        terms[SCENES] = scenes
    return terms


def _scenes(config: RunConfig) -> str:
    """SHA-256 of the suite's BDDL files and order, where it is one of the user's own."""
    folder = config.env.bddl_directories.get(config.tasks.suite)
    if folder is None or not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for file in (*bddl_files(folder), folder / "suite.toml"):
        if file.is_file():
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _policy_terms(config: Section) -> dict[str, object]:
    with contextlib.suppress(ConfigError, ValueError):
        if isinstance(config, RunConfig):
            model = policy_spec(config.policy.checkpoint)
            return {
                UNITS: units_of(model, [chosen_unnorm_key(config, model)]),
                CENTER_CROP: model.crops(config.policy.center_crop),
                FAMILY: _family(config.policy.checkpoint),
            }
        if isinstance(config, RewardModelConfig):
            return _all_units(config.scored_policy)
        if isinstance(config, SftConfig) and config.checkpoint is not None:
            own = config.data.statistics == "checkpoint"
            return _all_units(config.checkpoint) if own else {}
    return {}


def _family(folder: Path) -> dict[str, object]:
    """What ``family.json`` says of a policy's observations and answers."""
    path = folder / FAMILY_FILE
    return {"family": "openvla"} | (read_json(path) if path.exists() else {})


def _all_units(folder: Path) -> dict[str, object]:
    model = policy_spec(folder)
    return {UNITS: units_of(model, model.norm_stats)}


def units_of(model: PolicySpec, keys: Iterable[str]) -> dict[str, object]:
    """The numbers that un-normalise actions, as JSON has them, by key; without those it lacks. Of
    a policy that reads proprioception also those that normalise that.
    """
    return {
        key: _numbers(one) | ({"proprio": _numbers(read)} if read is not None else {})
        for key in sorted(keys)
        if (one := model.norm_stats.get(key)) is not None
        for read in [model.proprio_stats.get(key)]
    }


def _numbers(one: ActionStats) -> dict[str, object]:
    return {"q01": one.q01.tolist(), "q99": one.q99.tolist(), "mask": one.mask.tolist()}
