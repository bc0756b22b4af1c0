"""What `vlarl.weights.hub` asks of the hub and its cache, through huggingface_hub."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, get_token

from vlarl.disk import room_for
from vlarl.errors import ConfigError
from vlarl.invocation import invocation
from vlarl.terminal import PlainConsole, say
from vlarl.weights.folder import FAMILY_FILE
from vlarl.weights.hub_names import HubName, chosen_files
from vlarl.weights.hub_progress import shown_growth
from vlarl.weights.whereabouts import OFT_HEADS, adoption, is_oft, useless_head

_LOG = logging.getLogger(__name__)
_ANSWER_SECONDS = 10.0
_INTERRUPTED = 130
_SERVERS_FAULT = 500
"""The lowest status of an answer that isn't the request's fault."""


def commit_of(name: HubName) -> str:
    """The commit that a name's revision is now; without the hub, what the cache says it was.

    Raises:
        ConfigError: there is no such model or revision, or nobody can tell.
    """
    api = HfApi()
    with _explained(name):
        try:
            _ask(name)
        except (HTTPError, OfflineModeIsEnabled) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < _SERVERS_FAULT:
                raise
            try:
                known = api.resolve_revision(
                    name.model, revision=name.revision, local_files_only=True
                )
            except RevisionResolutionError as unknown:
                raise unknown from error
            _LOG.warning("%s can't be reached: %s is as the cache has it", constants.ENDPOINT, name)
            return str(known.resolved)
        return str(api.resolve_revision(name.model, revision=name.revision).resolved)


def cached_folder(name: HubName) -> Path | None:
    """A commit's folder in the cache, where it is whole; None: something has to be downloaded."""
    folder = _repository(name) / "snapshots" / name.revision
    try:
        tree = get_cached_repo_tree(name.model, revision=name.revision)
    except CachedRepoTreeNotFoundError:
        # An older library downloaded it, and nothing says what belongs to it.
        return folder if (folder / "config.json").exists() else None
    names = [file.path for file in tree]
    _check_listing(name, names)
    whole = all((folder / one).exists() for one in chosen_files(names))
    return folder if whole else None


def download(name: HubName, *, show: bool) -> Path:
    """Brings a commit's checkpoint into the cache. Cut short, it goes on where it was.

    Args:
        name: at a commit.
        show: whether progress is shown on standard error.

    Raises:
        ConfigError: it can't be had, or it holds no weights that are loaded.
        DiskFullError: the cache's disk has no room.
    """
    with _explained(name):
        _ask(name)
        tree = HfApi().list_repo_tree(name.model, recursive=True, revision=name.revision)
        sizes = {one.path: one.size for one in tree if isinstance(one, RepoFile)}
        _check_listing(name, list(sizes))
        wanted = chosen_files(list(sizes))
        blobs = _repository(name) / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        there = _size(blobs)
        # Other commits' files lie there, too, and none is twice: so this is the most it can take.
        folder = blobs.parent / "snapshots" / name.revision
        missing = sum(size for one, size in sizes.items() if one in wanted) - sum(
            sizes[one] for one in wanted if (folder / one).exists()
        )
        begun = sum(one.stat().st_size for one in blobs.glob("*.incomplete"))
        disable_progress_bars()
        with (
            _ended_at_once(),
            room_for(f"the download of {name.model}", blobs, max(0, missing - begun)),
            shown_growth(name.model, max(0, missing - begun), lambda: _size(blobs) - there, show),
        ):
            exact = [glob.escape(one) for one in wanted]
            return Path(snapshot_download(name.model, revision=name.revision, allow_patterns=exact))


@contextlib.contextmanager
def _ended_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process: the library would first finish all files that it has begun,
    which takes minutes. They are gone on with the next time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        PlainConsole(stderr=True).show_cursor()
        say(("interrupted", "yellow"), stderr=True)
        os._exit(_INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ask(name: HubName) -> None:
    """Looks whether the hub has it and answers: in all that follows the library would wait for
    ever, or try for half a minute.
    """
    HfApi().model_info(name.model, revision=name.revision, timeout=_ANSWER_SECONDS)


def _check_listing(name: HubName, names: list[str]) -> None:
    """Refuses a repository by its files' names, of which some that tell aren't downloaded."""
    heads = [one for pattern in OFT_HEADS for one in fnmatch.filter(names, pattern)]
    if heads and useless_head(heads[0]):
        raise ConfigError(is_oft(name, heads[0]))
    if heads and FAMILY_FILE not in names:
        raise ConfigError(
            f"{name} is OpenVLA-OFT ({heads[0]}), of which a part is pickled, which isn't "
            f"downloaded: {_fetch(name)}, then {adoption('DIR')}, and name OUT"
        )
    if any(one.endswith(".safetensors") for one in chosen_files(names)):
        return
    pickled = [one for one in names if one.endswith((".bin", ".pt", ".pth"))]
    if not pickled:
        raise ConfigError(f"{name} holds no weights (no .safetensors file): it is no checkpoint")
    raise ConfigError(
        f"{name}: its weights are pickled ({pickled[0]}), which isn't downloaded: {_fetch(name)}, "
        f"then `{invocation()} checkpoint adopt DIR OUT`, and name OUT"
    )


def _fetch(name: HubName) -> str:
    """The command that downloads all files, whatever they are."""
    command = f"{invocation('hf')} download {name.model} --revision {name.revision}"
    return f"`{command} --local-dir DIR`"


def _repository(name: HubName) -> Path:
    """A model's folder in the cache."""
    folder = f"models--{name.model.replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE).expanduser() / folder


def _size(blobs: Path) -> int:
    """Bytes of all files in a folder, some of which may vanish meanwhile."""
    total = 0
    for one in blobs.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += one.stat().st_size
    return total


@contextlib.contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """Turns what the library raises into one sentence that says what to do."""
    try:
        yield
    except GatedRepoError as error:
        raise ConfigError(
            f"{name.model} is gated: ask for access on {constants.ENDPOINT}/{name.model}, and set "
            "HF_TOKEN to a token of the account that has it"
        ) from error
    except RepositoryNotFoundError as error:
        token = "the token in use may not read it" if get_token() else "HF_TOKEN isn't set"
        raise ConfigError(
            f"{constants.ENDPOINT} has no model {name.model}, or it is private and {token}; nor is "
            f"there such a folder (seen from {Path.cwd()}): correct the name, or set HF_TOKEN to a "
            "token of an account that may read it"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{name.model} has no revision {name.revision!r}: name a branch, a tag or a commit of "
            f"{constants.ENDPOINT}/{name.model}"
        ) from error
    except (RevisionResolutionError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConfigError(_unreachable(name, error)) from error
    except HfHubHTTPError as error:
        raise ConfigError(
            f"{constants.ENDPOINT} refuses {name} (status {error.response.status_code}): try again "
            "later; what has been downloaded stays"
        ) from error
    except HTTPError as error:
        raise ConfigError(_unreachable(name, error)) from error
    except HFValidationError as error:
        raise ConfigError(f"{name} can't be a name on the hub: {error}") from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ConfigError(
            f"{error.filename} can't be written ({error.strerror}): set HF_HOME to a folder that "
            "this user may write"
        ) from error


def _unreachable(name: HubName, error: Exception) -> str:
    cache = constants.HF_HUB_CACHE
    fetch = f"`hf download {name.model} --revision {name.revision} --local-dir DIR`"
    if constants.is_offline_mode():
        return (
            f"{name} isn't whole in the cache, {cache}, and HF_HUB_OFFLINE is set: set it to 0, or "
            f"{fetch} where there is a network, and name DIR"
        )
    cause = error.__cause__ or error
    told = ": ".join([type(cause).__name__, *str(cause).splitlines()[:1]])
    return (
        f"{constants.ENDPOINT} can't be reached ({told}), and {name} "
        f"isn't whole in the cache, {cache}: look at the network and HTTPS_PROXY, or {fetch} "
        "elsewhere, and name DIR"
    )
