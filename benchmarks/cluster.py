"""What a run of OpenVLA-7B takes of 1, 8 and 64 GPUs, beside the GPUs' own memory, and how fast a
policy server of it can be, and of OpenVLA-OFT at that size.

    python -m benchmarks.cluster

Arithmetic on numbers that were measured; each constant says where. docs/sizing.md has the table.
tests/unit/benchmarks/test_cluster.py compares it with the measurements, and the manifests with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.table import Table

from benchmarks.sizing import Model, models_7b, openvla_7b, sizes
from vlarl.config import PolicyConfig
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.limits import MOST_BATCHED_TOKENS, kv_cache_bytes
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.terminal import show
from vlarl_trainer.memory import image_tokens, parameter_counts, sequence_length

GB = 10**9

# ---- measured (docs/benchmarks.md) ---------------------------------------------------------------
STEPS = 220
"""Actions of a failed episode of LIBERO-Spatial: the longest."""
FRAME_BYTES = 23_000
"""A JPEG of 256 px, quality 95."""
STEPS_A_CORE = 10.6
"""Control steps a second of a faithful simulator that draws in software, served."""
SIMULATORS_A_CORE = 4
"""That share a core in turn, so that it always has one to compute (decision 12)."""
SIMULATOR_BYTES = {"faithful": (1.6 * GB, 0.9 * GB), "fast": (0.75 * GB, 0.35 * GB)}
"""Of a simulator with its first scene, and of each further one that it keeps."""
ENV_SERVER_BYTES = 0.2 * GB
"""Of an env server, trajectories that it finishes included."""
REDIS_AT_ONCE = 2.4
"""Copies of all frames that Redis takes when all episodes end at the same moment."""
REDIS_WITH_FILES = 0.1 * GB
"""Of Redis where blobs lie in files: some kilobytes an episode."""
RANK_COPIES = 0.1
"""Copies of all frames that rank 0 has of its own, beside those that the node's ranks share."""
LEARNED_A_SECOND = 1 / (1 / 16.56 + 1 / 9.387)
"""Actions that one H100 learns from in a second: features and log-probs, then one epoch."""
MATRIX_FLOPS = 764.2e12
"""Operations a second of an H100 in a large bfloat16 matrix product."""
SCORED_A_SECOND = 400
"""Episodes that a reward server scores in a second where it looks at no frame, on one core."""

# ---- not measured --------------------------------------------------------------------------------
READ_BYTES = 3.35e12
"""Bytes a second that an H100 reads of its memory, by its data sheet."""
PASS_SECONDS = 0.005
"""Allowance for what an engine's pass costs beside its operations: scheduling, launching, sampling.
"""
PROMPT_TOKENS = 64
"""An instruction's prompt and the action's tokens; LIBERO's are shorter."""
RANK_BYTES = 6 * GB
"""Allowance for a rank's process: torch, CUDA's host memory, and the checkpoint's pages in use."""
DECODED_BYTES = 224 * 224 * 3
"""Of a frame that a rank has decoded; it keeps each for the iteration."""
IN_WORK = (1, 8, 32, 64)
"""Answers that an engine computes at once (`policy.max_batch`), in the table of both families."""
VISION = ("first tower", "second tower", "projector")
"""Parts that read images' tokens alone."""
LOOKS = 2
"""How often each state is looked at by some rank: once before the update, and once an epoch."""


@dataclass(frozen=True)
class Cluster:
    """A run on so many GPUs."""

    gpus: int
    policy_gpus: float
    """0.5: policy server and trainer share one."""
    ranks_a_node: int
    simulators: int
    """And episodes an iteration."""
    staleness: int

    @property
    def trainer_gpus(self) -> int:
        """Ranks."""
        return math.ceil(self.gpus - self.policy_gpus)

    @property
    def frame_bytes(self) -> int:
        """Of one iteration."""
        return self.simulators * (STEPS + 1) * FRAME_BYTES

    @property
    def iterations_held(self) -> int:
        """Whose frames are there at one time: one is learned from while the next is collected."""
        return 1 + self.staleness

    @property
    def env_cores(self) -> int:
        """For all simulators."""
        return math.ceil(self.simulators / SIMULATORS_A_CORE)

    @property
    def redis_bytes(self) -> float:
        """At most, with blobs in Redis."""
        return (self.staleness + REDIS_AT_ONCE) * self.frame_bytes

    @property
    def node_bytes(self) -> float:
        """Host memory of a node's ranks: frames once, decoded ones and the process by rank."""
        states = self.simulators * (STEPS + 1) * min(1.0, LOOKS / self.trainer_gpus)
        decoded = states * DECODED_BYTES
        shared = (self.iterations_held + RANK_COPIES) * self.frame_bytes
        return shared + self.ranks_a_node * (decoded + RANK_BYTES)


CLUSTERS = (
    Cluster(1, 0.5, ranks_a_node=1, simulators=10, staleness=0),
    Cluster(8, 1, ranks_a_node=7, simulators=64, staleness=1),
    Cluster(64, 5, ranks_a_node=8, simulators=256, staleness=1),
)


@dataclass(frozen=True)
class Answer:
    """What one answer of a policy takes, in the engine's passes."""

    passes: int
    """From the first to the last one."""
    first: int
    """Tokens of the language model in the first pass."""
    operations: float
    """Of all passes, a multiplication and an addition being two; attention's own products, some
    percent, left out."""
    steps: int
    """Control steps that it is for."""

    @classmethod
    def of(cls, model: Model) -> Answer:
        """Token by token: one pass a token, of which the first reads the prompt. A chunk: one pass,
        which reads the placeholders of all its tokens with the prompt.
        """
        its = sizes(model)
        parameters, spec, images = parameter_counts(its), its.spec, image_tokens(its)
        if isinstance(model, OFTConfig):
            passes, first = 1, sequence_length(its)
        else:
            passes = spec.tokens
            first = images + PROMPT_TOKENS - passes
        vision = sum(parameters[part] for part in VISION)
        language = (first + passes - 1) * parameters["language model"]
        return cls(passes, first, 2.0 * (language + images * vision), spec.chunk)


def answers_a_second(model: Model, sequences: int) -> float:
    """Most answers a second of an engine that has so many in work, always.

    In each pass a share of the answers begins, which is nearly all of their operations; the others
    add a token each. A pass reads all weights once.
    """
    answer = Answer.of(model)
    begin = min(sequences / answer.passes, MOST_BATCHED_TOKENS / answer.first)
    reading = 2 * sum(parameter_counts(sizes(model)).values()) / READ_BYTES
    return begin / (max(begin * answer.operations / MATRIX_FLOPS, reading) + PASS_SECONDS)


def simulators_bytes(profile: str, scenes: int, processes: int) -> float:
    """Of an env server with so many simulators, each with so many scenes."""
    first, further = SIMULATOR_BYTES[profile]
    return ENV_SERVER_BYTES + processes * (first + (scenes - 1) * further)


def checkpoint_bytes(model: OpenVLAConfig, rank: int) -> int:
    """A trainer's checkpoint: factors and both moments, in float32."""
    return 12 * sum(rank * (out + into) for out, into in lora_layers(model).values())


def rows(cluster: Cluster, model: OpenVLAConfig) -> dict[str, str]:
    """The table's column."""
    acted = cluster.env_cores * STEPS_A_CORE
    servable = max(cluster.policy_gpus, 1) * answers_a_second(model, 64)
    learned = cluster.trainer_gpus * LEARNED_A_SECOND
    actions = cluster.simulators * STEPS
    pods = math.ceil(cluster.simulators / 4)
    return {
        "simulators, and episodes an iteration": f"{cluster.simulators}",
        "env pods of 4 simulators": f"{pods}",
        "CPU of an env pod, cores": "1",
        "memory of an env pod, GB": f"{simulators_bytes('faithful', 2, 4) / GB:.1f}",
        "memory of all env pods, GB": f"{pods * simulators_bytes('faithful', 2, 4) / GB:.0f}",
        "actions/s that simulators take": f"{acted:.0f}",
        "actions/s that policy servers give": f"{servable:.0f}",
        "actions/s that the trainer learns from": f"{learned:.0f}",
        "rollout, seconds": f"{actions / min(acted, servable):.0f}",
        "learning, seconds": f"{actions / learned:.0f}",
        "frames of an iteration, GB": f"{cluster.frame_bytes / GB:.2f}",
        "Redis, blobs in it, GB at most": f"{cluster.redis_bytes / GB:.1f}",
        "Redis, blobs in files, GB": f"{REDIS_WITH_FILES / GB:.1f}",
        "volume of Redis, GB": f"{2 * cluster.iterations_held * cluster.frame_bytes / GB:.1f}",
        "ranks a node": f"{cluster.ranks_a_node}",
        "memory of a node's ranks, GB": f"{cluster.node_bytes / GB:.0f}",
        "reward servers (outcome)": f"{math.ceil(cluster.simulators / SCORED_A_SECOND)}",
        "checkpoints (2) of the run, GB": f"{2 * checkpoint_bytes(model, 32) / GB:.1f}",
    }


def engine_rates(model: OpenVLAConfig) -> Table:
    """What `policy.max_batch` is worth, and what it takes."""
    most = answers_a_second(model, 256)
    table = Table("policy.max_batch", "actions/s, at most", "share", "KV cache, GiB", title="H100")
    for sequences in (1, 8, 16, 32, 64, 128, 256):
        rate = answers_a_second(model, sequences)
        cache = kv_cache_bytes(PolicyConfig(max_batch=sequences), model, itemsize=2) / 2**30
        table.add_row(str(sequences), f"{rate:.0f}", f"{rate / most:.2f}", f"{cache:.2f}")
    return table


def answer_row(model: Model) -> list[str]:
    """What an answer takes, and most control steps a second with so many answers in work."""
    answer = Answer.of(model)
    teras = answer.operations / 1e12
    rates = [answer.steps * answers_a_second(model, number) for number in IN_WORK]
    return [
        *(str(answer.passes), str(answer.first), f"{teras:.1f}", f"{teras / answer.steps:.2f}"),
        *(f"{rate:.0f}" for rate in rates),
    ]


def main() -> None:
    """Entry point."""
    model = openvla_7b()
    show(engine_rates(model))
    heads = ("passes", "tokens of the first", "TFLOP an answer", "TFLOP a control step")
    table = Table("7B", *heads, *map(str, IN_WORK), title="H100, control steps/s, at most")
    for name, its in models_7b().items():
        table.add_row(name, *answer_row(its))
    show(table)
    table = Table("", *(f"{one.gpus} GPUs" for one in CLUSTERS), title="OpenVLA-7B, H100")
    columns = [rows(one, model) for one in CLUSTERS]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    show(table)


if __name__ == "__main__":
    main()
