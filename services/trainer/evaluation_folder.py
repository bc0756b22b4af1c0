"""What an evaluation leaves behind, and goes on from when it was cut short.

OUT/evaluation.json   what was evaluated, how, and the score so far
    episodes.jsonl    one line an episode, in the order in which they ended
    config.toml       the resolved configuration
    videos/           where they were asked for
    rollouts/         likewise, a dataset of all episodes
    logs/             a log a service
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.trainer.evaluation import EpisodeResult, Evaluation
from services.trainer.json_lines import JsonLines
from vlarl.config import ConfigError, RunConfig, dump_toml

_SCORE = "evaluation.json"


class EvaluationFolder:
    """Holds the episodes of one policy under one protocol."""

    def __init__(self, path: Path, protocol: dict[str, Any]) -> None:
        """Opens the folder, new or begun.

        Args:
            path: the folder.
            protocol: everything that an episode's outcome depends on.

        Raises:
            ConfigError: it holds another policy's episodes, or another protocol's.
        """
        self.path = path
        self._protocol: dict[str, Any] = json.loads(json.dumps(protocol))
        before = path / _SCORE
        if before.exists():
            _check_same(path, json.loads(before.read_text())["protocol"], self._protocol)
        path.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(path / "episodes.jsonl")
        self.results = [EpisodeResult(**row) for row in self._lines.rows]
        """The episodes that have ended."""

    def save_config(self, config: RunConfig) -> None:
        """Writes the configuration from which services are started."""
        (self.path / "config.toml").write_text(dump_toml(config))

    def has(self, task: int, init_state: int) -> bool:
        """Whether this episode has ended."""
        return any((one.task, one.init_state) == (task, init_state) for one in self.results)

    def add(self, result: EpisodeResult) -> None:
        """Records an episode durably."""
        self._lines.append(asdict(result))
        self.results.append(result)

    def write_score(self, evaluation: Evaluation, *, complete: bool) -> None:
        """Writes evaluation.json anew."""
        content = {"complete": complete, "protocol": self._protocol} | evaluation.to_json()
        partial = self.path / f".{_SCORE}.partial"
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.path / _SCORE)


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{path} holds an evaluation with {key} = {before.get(key)}, not {now.get(key)}: "
                "choose another --out"
            )
