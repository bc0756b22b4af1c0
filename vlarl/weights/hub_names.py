"""Names on the Hugging Face hub: which paths are ones, and which of a model's files are needed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(
    # Path("https://...") has lost a slash.
    r"(?P<url>https?:/+huggingface\.co/)?(?P<name>[\w-][\w.-]*/[\w-][\w.-]*?)"
    r"(?:(?:@|/tree/)(?P<revision>[\w.-]+(?:/[\w.-]+)*))?/?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OWN_FOLDERS = {"checkpoints", "policies", "rewards", "runs"}
"""Where the documentation puts checkpoints: a name below them is no hub's."""
_MAIN = "main"
_WANTED = (".json", ".safetensors", ".model", ".txt", ".jinja")
_PLACES = ("", "policy")
"""Folders of a repository that a checkpoint's files lie in; "policy" is a reward model's."""


@dataclass(frozen=True)
class HubName:
    """A model of the hub at one revision."""

    model: str
    """OWNER/NAME."""
    revision: str
    """A branch, a tag or a commit."""

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}"

    @property
    def fixed(self) -> bool:
        """Whether the revision is a commit, which can't move."""
        return _COMMIT.fullmatch(self.revision) is not None


def hub_name(checkpoint: Path) -> HubName | None:
    """The name that a checkpoint's path is; None: it is a folder's.

    An existing folder is one. Of what doesn't exist, `OWNER/NAME@REVISION` and a page's address on
    huggingface.co are names. So is `OWNER/NAME`, unless there is a folder OWNER here, or it is one
    of those in which checkpoints are kept.
    """
    found = _NAME.fullmatch(str(checkpoint))
    # A link to nowhere counts as there: whoever opens it says so.
    if found is None or os.path.lexists(checkpoint):
        return None
    if found["revision"] is None and found["url"] is None:
        owner = checkpoint.parts[0]
        if owner in _OWN_FOLDERS or os.path.lexists(owner):
            return None
    return HubName(found["name"], found["revision"] or _MAIN)


def chosen_files(names: list[str]) -> list[str]:
    """Of a repository's files, those of a checkpoint: weights as safetensors, JSON, the tokenizer.

    Neither pickles nor code are among them.
    """
    found = []
    for name in names:
        path = Path(name)
        if path.suffix in _WANTED and str(path.parent).replace(".", "", 1) in _PLACES:
            found.append(name)
    return found
