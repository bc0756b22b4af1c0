"""Runs that differ in nothing but their seed belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlarl.config import RunConfig
from vlarl_jobs.report.run_folder import Run

_OWN = ("name", "seed")
_MOST_IN_LABEL = 2


@dataclass(frozen=True)
class Group:
    """Runs of one configuration."""

    label: str
    runs: list[Run]
    """In the order in which they were named; at least one."""

    @property
    def first(self) -> Run:
        """The run that stands for all where only one can be shown."""
        return self.runs[0]

    @property
    def seeds(self) -> str:
        """Of the runs, with commas."""
        return ", ".join(str(run.config.seed) for run in self.runs)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The runs by configuration, labelled by what tells them apart."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(repr(_shared(run.config)), []).append(run)
    groups = list(found.values())
    differing = differences([group[0] for group in groups])
    return [Group(_label(group, differing, len(groups)), group) for group in groups]


def differences(runs: Sequence[Run]) -> list[str]:
    """Keys whose values aren't the same in all of these runs, name and seed aside."""
    return differing_keys([run.config for run in runs])


def differing_keys(configs: Sequence[RunConfig]) -> list[str]:
    """Keys whose values aren't the same in all of these, name and seed aside."""
    flat = [_shared(config) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [key for key in keys if len({repr(one.get(key)) for one in flat}) > 1]


def flattened(config: RunConfig) -> dict[str, object]:
    """The configuration as section.key to value; keys that aren't set are left out."""
    return dict(_flat(config.model_dump(mode="json", exclude_none=True), ""))


def _flat(table: Mapping[str, object], prefix: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found


def _shared(config: RunConfig) -> dict[str, object]:
    return {key: value for key, value in flattened(config).items() if key not in _OWN}


def _label(group: Sequence[Run], differing: Sequence[str], groups: int) -> str:
    """What sets a group apart, where that is short; else its first run's name."""
    name = group[0].name + (f" and {len(group) - 1} more" if len(group) > 1 else "")
    if groups == 1 or not 0 < len(differing) <= _MOST_IN_LABEL:
        return name
    flat = flattened(group[0].config)
    return ", ".join(f"{key.rpartition('.')[2]} {flat.get(key, '-')}" for key in differing)
