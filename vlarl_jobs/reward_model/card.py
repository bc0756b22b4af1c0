"""What a trained reward model is worth, beside its weights: numbers, a picture, and a page to read.

CHECKPOINT/reward_model.json   version, how it was made, the numbers
           reliability.png     how far its probabilities can be taken at their word
           README.md           the model card
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from vlarl.config import RewardModelConfig
from vlarl.data.samples import Samples
from vlarl.models.process_reward.model import ProcessRewardModel
from vlarl.weights.checkpoint import base_digest
from vlarl.weights.folder import REWARD_CARD
from vlarl_jobs.report.theme import BLUE, GREY, PICTURE
from vlarl_jobs.reward_model.measures import Bools, Floats, Reliability, auc, reliability
from vlarl_jobs.reward_model.reading import ROLLOUT, Labelled

_LOG = logging.getLogger(__name__)

_BATCH = 64


def probabilities(model: ProcessRewardModel, samples: Samples) -> Floats:
    """P(the action leads somewhere) of each sample: [N]."""
    found = []
    for start in range(0, len(samples), _BATCH):
        batch = samples[np.arange(start, min(start + _BATCH, len(samples)))]
        prompts = [
            ids[:length].tolist()
            for ids, length in zip(batch.prompt_ids, batch.prompt_lengths, strict=True)
        ]
        found.append(model.probabilities(batch.frames.numpy(), prompts, batch.token_ids.numpy()))
    return np.concatenate([*found, np.zeros(0)])


def write_card(checkpoint: Path, config: RewardModelConfig, labelled: Labelled) -> None:
    """Scores all held-out samples with a new checkpoint, and writes the three files into it.

    Args:
        checkpoint: the reward model's.
        config: what it was made by.
        labelled: what it was made from.
    """
    scores = probabilities(ProcessRewardModel(checkpoint), labelled.all_held_out)
    labels = labelled.all_held_out.labels == 1
    spread = reliability(scores, labels) if len(scores) else None
    content = {
        "version": base_digest(checkpoint)[:12],
        "data": labelled.description,
        "samples": {"learned": len(labelled.train), "held_out": len(labels)},
        "held_out": _numbers(scores, labels),
        "calibration_error": None if spread is None else round(spread.error, 4),
        "by_task": {
            name: _numbers(scores[chosen], labels[chosen])
            for number, name in enumerate(labelled.tasks)
            for chosen in [labelled.origin == number]
        },
        "by_segment": {
            _segment_name(number): _numbers(scores[chosen], labels[chosen])
            for number in np.unique(labelled.segment).tolist()
            for chosen in [labelled.segment == number]
        },
        "config": config.model_dump(mode="json"),
    }
    (checkpoint / REWARD_CARD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (checkpoint / "README.md").write_text(_page(content), encoding="utf-8")
    if spread is not None:
        _draw(checkpoint / "reliability.png", spread)
        _LOG.info(
            "reward model %s, held out: AUC %.3f, calibration error %.3f",
            content["version"],
            auc(scores, labels),
            spread.error,
        )


def _segment_name(number: int) -> str:
    return "rollouts" if number == ROLLOUT else f"segment {number}"


def _numbers(scores: Floats, labels: Bools) -> dict[str, float | int | None]:
    """None where there is nothing to say: too few, or of one kind only."""
    area = auc(scores, labels)
    return {
        "samples": len(scores),
        "positive": round(float(labels.mean()), 4) if len(scores) else None,
        "accuracy": round(float(((scores > 0.5) == labels).mean()), 4) if len(scores) else None,
        "auc": None if np.isnan(area) else round(area, 4),
        "mean_score": round(float(scores.mean()), 4) if len(scores) else None,
    }


def _draw(path: Path, spread: Reliability) -> None:
    with mpl.rc_context(PICTURE):
        figure = Figure(figsize=(4.2, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
        axes.plot(spread.predicted, spread.observed, "o-", color=BLUE)
        for x, y, count in zip(spread.predicted, spread.observed, spread.count, strict=True):
            axes.annotate(f"{count:,}", (x, y), (5, -9), textcoords="offset points", fontsize=7)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability", ylabel="share that is positive")
        axes.set_title(f"reliability; calibration error {spread.error:.3f}")
        figure.savefig(path, dpi=110)


def _page(content: dict[str, Any]) -> str:
    rows = {"all": content["held_out"]} | content["by_task"] | content["by_segment"]
    lines = [
        f"# Process reward model {content['version']}",
        "",
        f"Says of an action whether it leads somewhere. {content['data']}.",
        "Whole placements are held out. Negatives are also actions that are right, but far from",
        "any key frame, so an accuracy of 1 is not to be had. `vlarl reward train` made it;",
        f"`{REWARD_CARD}` has its configuration.",
        "",
        "| held out | samples | positive | accuracy | AUC | mean score |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        cells = [row[key] for key in ("positive", "accuracy", "auc", "mean_score")]
        shown = ["–" if cell is None else f"{cell:.3f}" for cell in cells]
        lines.append(f"| {name} | {row['samples']:,} | {' | '.join(shown)} |")
    if content["calibration_error"] is not None:
        lines += ["", "![reliability](reliability.png)"]
    return "\n".join(lines) + "\n"
