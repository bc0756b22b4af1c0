"""What makes a checkpoint OpenVLA-OFT: ``family.json``, beside a ``config.json`` that says OpenVLA.

    {"family": "openvla_oft", "chunk": 8, "convention": "stop",
     "cameras": ["agentview", "robot0_eye_in_hand"], "proprio": 8}

``chunk`` and ``convention`` are always there: nothing else in a checkpoint tells them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vlarl.errors import ConfigError
from vlarl.models.openvla.config import OpenVLAConfig, stored_statistics
from vlarl.models.openvla.limits import MAX_PROMPT_TOKENS
from vlarl.models.openvla.oft import OPENVLA_OFT
from vlarl.models.openvla.tokens import ActionTokenizer
from vlarl.models.spec import PolicySpec
from vlarl.models.statistics import STATISTICS, ActionStats
from vlarl.weights.folder import FAMILY_FILE, configuration_of, read_json
from vlarl.weights.whereabouts import adoption

STOP_ID = 2
"""Id of Llama-2's end of a sequence, by which training sequences end."""

Convention = Literal["stop", "no_stop"]
"""Whether the stop token follows the placeholders: with it (SimpleVLA-RL, the original openvla-oft,
RLinf's "official"), or without (RLinf's "rlinf").
"""

_KEYS = ("family", "chunk", "convention", "cameras", "proprio")
MAIN_CAMERA = ("agentview",)


@dataclass(frozen=True, eq=False)
class OFTConfig:
    """A checkpoint's resolved configuration."""

    base: OpenVLAConfig
    """What it has as an OpenVLA."""
    convention: Convention
    """What follows the placeholders."""

    @classmethod
    def from_directory(cls, directory: str | Path) -> OFTConfig:
        """Read a checkpoint's ``family.json``, ``config.json`` and ``dataset_statistics.json``.

        Raises:
            ConfigError: a file is missing or can't be used; the message names it.
        """
        directory = Path(directory)
        path = directory / FAMILY_FILE
        raw = read_json(configuration_of(directory))
        if not os.path.lexists(path):
            raise ConfigError(
                f"{path} is missing: config.json doesn't say how many control steps a pass of "
                f"OpenVLA-OFT answers; {adoption(directory)} writes it"
            )
        base, table = OpenVLAConfig.from_directory(directory), read_json(path)
        try:
            _check_keys(table)
            width = _whole_number(table, "proprio", 0, default=0)
            config = cls.of_openvla(base, table, _proprio_statistics(directory, raw, width))
            if too_long := config.too_long():
                raise FamilyError(
                    f"{too_long}: write the chunk and the cameras that the checkpoint was trained "
                    "with"
                )
        except FamilyError as error:
            raise ConfigError(f"{path}: {error}") from error
        return config

    @classmethod
    def of_openvla(
        cls,
        base: OpenVLAConfig,
        table: Mapping[str, Any],
        proprio_stats: Mapping[str, ActionStats],
    ) -> OFTConfig:
        """An OpenVLA that ``family.json`` makes one.

        Args:
            base: the OpenVLA.
            table: ``family.json``.
            proprio_stats: a dataset's name to its statistics of proprioception; empty: it reads
                none.

        Raises:
            FamilyError: a value can't be used.
        """
        spec = replace(
            _cropped_as_trained(base.spec, _convention(table)),
            family=OPENVLA_OFT,
            chunk=_chunk(table),
            cameras=_cameras(table),
            proprio_stats=proprio_stats,
        )
        return cls(replace(base, spec=spec), _convention(table))

    @property
    def spec(self) -> PolicySpec:
        """Its observations and actions."""
        return self.base.spec

    @property
    def action_tokenizer(self) -> ActionTokenizer:
        """From normalised values to action ids, and back."""
        return self.base.action_tokenizer

    @property
    def num_patches(self) -> int:
        """Number of all images' tokens."""
        return len(self.spec.cameras) * self.base.num_patches

    @property
    def longest_sequence(self) -> int:
        """Tokens of a pass with the longest prompt."""
        extra = bool(self.spec.proprio_dim) + (self.convention == "stop")
        return self.num_patches + MAX_PROMPT_TOKENS + self.spec.tokens + extra

    @property
    def placeholder_id(self) -> int:
        """The id of placeholders in the engine, whose embedding is zero: the one after the
        padding's, which no text has.
        """
        return self.base.pad_token_id + 1

    def too_long(self) -> str:
        """Why the language model can't take a pass; empty: it can."""
        most = self.base.text.max_position_embeddings
        if self.longest_sequence <= most:
            return ""
        return (
            f"a pass has up to {self.longest_sequence} tokens, {self.num_patches} of images and "
            f"{self.spec.tokens} of actions, and the language model takes {most}"
        )

    def no_room(self) -> str:
        """Why the vocabulary has no placeholder, and what to do; empty: it has."""
        if self.placeholder_id < self.base.text.vocab_size:
            return ""
        return (
            "placeholders are the id after pad_token_id, which is the vocabulary's last: give "
            "embed_tokens and lm_head a row more, and count it in config.json's "
            "text_config.vocab_size"
        )


class FamilyError(ValueError):
    """A value of ``family.json`` can't be used."""


def _chunk(table: Mapping[str, Any]) -> int:
    if "chunk" not in table:
        raise FamilyError(
            "chunk is missing: the number of control steps that a pass answers, as the checkpoint "
            "was trained (LIBERO: 8, Bridge: 5)"
        )
    return _whole_number(table, "chunk", 1)


def _convention(table: Mapping[str, Any]) -> Convention:
    match table.get("convention"):
        case "stop":
            return "stop"
        case "no_stop":
            return "no_stop"
        case other:
            raise FamilyError(
                f'convention is {other!r}; write "stop" for a checkpoint of openvla-oft or '
                'SimpleVLA-RL, "no_stop" for one that RLinf trained by its default'
            )


def _cameras(table: Mapping[str, Any]) -> tuple[str, ...]:
    cameras = table.get("cameras", list(MAIN_CAMERA))
    named = isinstance(cameras, list) and all(isinstance(one, str) and one for one in cameras)
    if not named or not cameras or len(set(cameras)) != len(cameras):
        raise FamilyError(
            f"cameras is {cameras!r}; list each camera's name once, the main one's first"
        )
    return tuple(cameras)


def _whole_number(
    table: Mapping[str, Any], key: str, least: int, default: int | None = None
) -> int:
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FamilyError(f"{key} is {value!r}; write a whole number of at least {least}")
    return value


def _proprio_statistics(
    directory: Path, raw: Mapping[str, Any], width: int
) -> dict[str, ActionStats]:
    """Of every dataset, with as many dimensions as the policy reads; none where it reads none."""
    if not width:
        return {}
    try:
        stats, path = stored_statistics(directory, raw, "proprio")
    except ConfigError as error:
        raise ConfigError(
            f"{error}; the policy reads {width} numbers of proprioception: take the {STATISTICS} "
            "of its fine-tuning run"
        ) from error
    if (found := next(iter(stats.values())).action_dim) != width:
        raise FamilyError(
            f"proprio is {width}, and {path.name} has statistics of {found} dimensions: take those "
            "of the policy's fine-tuning run"
        )
    return stats


def _cropped_as_trained(spec: PolicySpec, convention: Convention) -> PolicySpec:
    """Without a centre crop unless ``config.json`` asks for one, where RLinf trained: its own
    setting of that name has no effect.
    """
    if convention == "stop" or spec.center_crop_is_set:
        return spec
    return replace(spec, center_crop=False, center_crop_is_set=True)


def _check_keys(table: Mapping[str, Any]) -> None:
    if table.get("family") != OPENVLA_OFT:
        raise FamilyError(f'family is {table.get("family")!r}; write "{OPENVLA_OFT}"')
    for key in table.keys() - set(_KEYS):
        near = difflib.get_close_matches(key, _KEYS, n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KEYS)}"
        raise FamilyError(f"unknown key {key!r}; {meant}")
