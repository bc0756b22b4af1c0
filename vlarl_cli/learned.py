"""Whether what a run has learned keeps its meaning under the configuration that it goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlarl.config import ConfigError, RewardModelConfig, RunConfig, SftConfig, load_section
from vlarl.config.checkpoints import with_checkpoints
from vlarl.config.resuming import CONTENTS, check_terms, terms
from vlarl.weights.hub import folder_in_cache

Configuration = RunConfig | SftConfig | RewardModelConfig


def check_learned(run: Path, settings: Configuration) -> None:
    """Compares with the newest checkpoint and, for what that doesn't say, with the configuration
    that was saved with the run. No tensor is read.

    Raises:
        ConfigError: a fixed key has another value than what was learned there.
    """
    from vlarl.models.meaning import meaning_terms

    checkpoint, learned = _newest_terms(run)
    did = "has learned" if learned else "began"
    before = _saved(run, settings)
    known = terms(before) | meaning_terms(before) if before is not None else {}
    now = terms(settings) | meaning_terms(settings)
    check_terms(type(settings), run if before else checkpoint, known | learned, now, did)


def check_contents(run: Path, settings: Configuration) -> None:
    """Of folders that lie elsewhere than when the run began, whether they hold the same.

    Raises:
        ConfigError: one doesn't.
        FatalError: one can't be read.
    """
    from vlarl.data.contents import content_digest, folders_of

    before = _saved(run, settings)
    if before is None:
        return
    _, learned = _newest_terms(run)
    for key in sorted(CONTENTS):
        was, now = folders_of(before, key), folders_of(settings, key)
        if [one.resolve() for one in was] == [one.resolve() for one in now]:
            continue
        if not all(map(Path.is_dir, now)):
            continue  # which is said by whoever looks for what a run needs
        held = learned.get(key)
        if held is None and was and all(map(Path.is_dir, was)):
            held = content_digest(key, was)
        if held is not None and (not now or held != content_digest(key, now)):
            raise ConfigError(
                f"{run} has learned with {key} = {_named(was)}, and {_named(now)} holds something "
                "else; leave it so, or begin a new run"
            )


def _saved(run: Path, settings: Configuration) -> Configuration | None:
    saved = run / "config.toml"
    if not saved.exists():
        return None
    return with_checkpoints(load_section(type(settings), saved), folder_in_cache)


def _newest_terms(run: Path) -> tuple[Path, dict[str, object]]:
    """A run's newest checkpoint and its terms; none where there is none that can be read, which is
    said by whoever goes on from it.
    """
    found = sorted(
        path
        for path in (run / "checkpoints").glob("**/state.json")
        if not path.parent.name.startswith(".")
    )
    if not found:
        return run, {}
    try:
        state = json.loads(found[-1].read_bytes())
    except (OSError, ValueError):
        state = None
    if not isinstance(state, Mapping):
        return found[-1].parent, {}
    # Those of earlier versions name their base alone.
    base = {"policy.checkpoint": state["base_digest"]} if "run_id" in state else {}
    return found[-1].parent, base | dict(state.get("terms") or {})


def _named(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders)) or "none"
