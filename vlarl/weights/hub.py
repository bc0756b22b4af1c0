"""Checkpoints by their names on the Hugging Face hub: a name becomes a commit, then a folder.

    openvla/openvla-7b@main ──pinned──▶ openvla/openvla-7b@31f0… ──folder_of──▶ CACHE/…/31f0…

A commit never changes. So a run keeps it in its configuration, and all services find the same
weights by it, in the hub's cache and without a network.
"""

from __future__ import annotations

from pathlib import Path

from vlarl.errors import ConfigError
from vlarl.weights.hub_names import hub_name


def pinned(checkpoint: Path) -> Path:
    """A name with the commit that its revision is now, `OWNER/NAME@COMMIT`; a folder as it is.

    Without the hub, it is the commit that the revision was when it was last looked up.

    Raises:
        ConfigError: the hub knows no such model or revision, or can't be asked; the message says
            what to do.
    """
    name = hub_name(checkpoint)
    if name is None:
        return checkpoint
    if name.fixed:
        return Path(str(name))
    from vlarl.weights.hub_access import commit_of

    return Path(f"{name.model}@{commit_of(name)}")


def folder_of(checkpoint: Path, *, show: bool = True) -> Path:
    """The folder that holds a checkpoint. What a name lacks in the hub's cache is downloaded.

    Args:
        checkpoint: a folder, which is returned, or a name.
        show: whether a download shows its progress on standard error.

    Raises:
        ConfigError: as `pinned`, or the repository holds no weights that are loaded.
        DiskFullError: the cache's disk has no room.
    """
    name = hub_name(pinned(checkpoint))
    if name is None:
        return checkpoint
    from vlarl.weights.hub_access import cached_folder, download

    return cached_folder(name) or download(name, show=show)


def folder_in_cache(checkpoint: Path) -> Path:
    """`folder_of` where nothing has to be looked up or downloaded; else the path as it is."""
    name = hub_name(checkpoint)
    if name is None or not name.fixed:
        return checkpoint
    from vlarl.weights.hub_access import cached_folder

    return cached_folder(name) or checkpoint


def require_commit(checkpoint: Path, why: str) -> Path:
    """The path as it is; a name whose revision may move is refused.

    Args:
        checkpoint: a folder or a name.
        why: what needs a commit, for the message.

    Raises:
        ConfigError: it may move; the message has the name with the commit. Or as `pinned`.
    """
    name = hub_name(checkpoint)
    if name is not None and not name.fixed:
        raise ConfigError(f"{checkpoint}: {why}: write {pinned(checkpoint)}, which it is now")
    return checkpoint
