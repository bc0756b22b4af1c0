"""What a policy's checkpoint says about its observations and actions, whatever its network is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vlarl.errors import ConfigError
from vlarl.models.statistics import ActionStats

_SHOWN_KEYS = 8


@dataclass(frozen=True, eq=False)
class PolicySpec:
    """A checkpoint's observations and actions, as its files describe them."""

    name: str
    """The model's, for people."""
    image_size: int
    """Height and width of a frame as the network sees it, in pixels."""
    center_crop: bool
    """Whether frames are cropped to their centre, where nobody says otherwise."""
    center_crop_is_set: bool
    """Whether the checkpoint says so itself; False: it was guessed."""
    action_ids: range
    """The ids of the vocabulary that are action tokens."""
    norm_stats: Mapping[str, ActionStats]
    """A dataset's name to its statistics; all have the same number of dimensions."""
    statistics_file: str
    """Name of the file that holds them."""
    family: str = "openvla"
    """Name of the policy family, as the registry knows it."""
    chunk: int = 1
    """C, the number of control steps that one answer is for."""
    cameras: tuple[str, ...] = ("agentview",)
    """Names of the cameras that it sees, one image each, the main one first."""
    proprio_stats: Mapping[str, ActionStats] = field(default_factory=dict)
    """A dataset's name to the statistics of its proprioception; empty: the policy reads none."""

    @property
    def action_dim(self) -> int:
        """D, the number of action dimensions, which is the number of tokens of a control step."""
        return next(iter(self.norm_stats.values())).action_dim

    @property
    def tokens(self) -> int:
        """K, the number of action tokens of one answer: C * D."""
        return self.chunk * self.action_dim

    @property
    def proprio_dim(self) -> int:
        """P, the numbers of proprioception; 0: the policy reads none."""
        return next((one.action_dim for one in self.proprio_stats.values()), 0)

    def unnorm_key(self, name: str = "") -> str:
        """The dataset key that ``name`` means: a key, a suite's name, or empty for the only key.

        Raises:
            ConfigError: no key fits.
        """
        if not name and len(self.norm_stats) == 1:
            return next(iter(self.norm_stats))
        for key in (name, f"{name}_no_noops"):
            if key in self.norm_stats:
                return key
        known = ", ".join(sorted(self.norm_stats))
        if not name:
            raise ConfigError(f"the checkpoint has several datasets' statistics; name one: {known}")
        raise ConfigError(f"no dataset statistics named {name!r}; the checkpoint has: {known}")

    def statistics(self, name: str = "") -> ActionStats:
        """Statistics of ``unnorm_key(name)``.

        Raises:
            ConfigError: no key fits.
        """
        return self.norm_stats[self.unnorm_key(name)]

    def crops(self, setting: bool | None) -> bool:
        """Whether frames are cropped, given the setting that overrides the checkpoint's; None:
        there is none.
        """
        return self.center_crop if setting is None else setting

    def usage(self, key: str | None = None, center_crop: bool | None = None) -> str:
        """Which statistics and which crop are used, and why, in words.

        Args:
            key: the one whose units actions are in; None: callers name one of all.
            center_crop: the setting that overrides the checkpoint's; None: there is none.
        """
        keys = sorted(self.norm_stats)
        shown = ", ".join(keys[:_SHOWN_KEYS]) + ", ..." * (len(keys) > _SHOWN_KEYS)
        if key is None and len(keys) > 1:
            units = f"actions in the units that a call names: {shown}"
        else:
            others = f", one of {len(keys)}: {shown}" if len(keys) > 1 else ""
            units = f"actions in the units of {key or shown}{others}"
        crop = self.crops(center_crop)
        if center_crop is not None:
            why = "as the configuration says"
        elif self.center_crop_is_set:
            why = "as the checkpoint says"
        else:
            which = "all of these statistics are" if crop else "not all of these statistics are"
            why = f"guessed, as {which} of LIBERO; policy.center_crop decides"
        return f"{units} ({self.statistics_file}); centre crop {'on' if crop else 'off'} ({why})"
