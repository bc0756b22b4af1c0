"""Digests of the folders that a configuration names: what they hold counts, not where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path

from vlarl.config import Section
from vlarl.config.resuming import CONTENTS
from vlarl.data.dataset import dataset_digest


def content_terms(config: Section) -> dict[str, object]:
    """By fixed key of `CONTENTS`, a digest of what its folders hold.

    Raises:
        FatalError: one of them can't be read.
    """
    found = {key: folders_of(config, key) for key in CONTENTS}
    return {key: content_digest(key, folders) for key, folders in found.items() if folders}


def folders_of(config: Section, key: str) -> tuple[Path, ...]:
    """The folders that a key names; none where it isn't set, or names no folder here."""
    try:
        value = attrgetter(key)(config)
    except AttributeError:
        return ()
    folders = value if isinstance(value, tuple) else (value,)
    return tuple(folder for folder in folders if isinstance(folder, Path))


def content_digest(key: str, folders: Iterable[Path]) -> str:
    """SHA-256 of checkpoints' weights, or of datasets' descriptions.

    Raises:
        FatalError: one of the folders can't be read.
    """
    if key == "data.datasets":
        digests = [dataset_digest(folder) for folder in folders]
    else:
        from vlarl.weights.checkpoint import base_digest  # needs torch, which takes a while

        digests = [base_digest(folder) for folder in folders]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
