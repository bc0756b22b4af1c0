"""What of an update reaches the policy that acts, in half precision, and in the trainer's passes.

    python -m benchmarks.precision [--quick] [--checkpoint DIR] [--device cuda]

Factors are trained in float32 by AdamW at the paper's rate: 1, 4, 16 and 64 steps in one direction,
on one batch, and as many steps in directions drawn at random. What they change in the log-probs of
other actions, computed in float32, is the yardstick. Each candidate is a way to hold and to compute
the same policy in 16 bits:

    rounding   nearest: to the nearest number; random: up with the probability of the remainder;
               thresholds: what the system does, see vlarl/weights/merge.py
    trainer    merged: the weights that the server has; beside: the factors' product added to what
               the layer makes of W0, in 16 bits or in float32

**kept**: the part of the yardstick's change that is in the candidate's, by least squares.
**noise**: root mean square of server minus trainer, over that of the yardstick's change.
**k3**: the mean of exp(d) - 1 - d of server minus trainer d: a KL divergence of nothing, in nats.

The server computes token by token, with a key-value cache, the trainer all tokens at once, as the
two really do. Weights are drawn at the 7B's scale, 0.02.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import DynamicCache

from benchmarks.report import Report
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.network import OpenVLA, load_model
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.weights.merge import Factors, merge, rounded

RANK, ALPHA, RATE = 32, 16.0, 2e-5
SCALING = ALPHA / RANK
DEVIATION = 0.02
STEPS = (1, 4, 16, 64)
PROMPT = 24
"""Text tokens of a prompt: an instruction's usual length."""
TEMPERATURE = 1.5
LEARNED = 8
"""Actions that the factors are trained on."""
EXACT = "float32"

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Actions:
    """B observations with the actions taken in them."""

    pixels: Tensor
    """[B, 3 * towers, S, S]."""
    prompts: Tensor
    """int64[B, L]."""
    tokens: Tensor
    """int64[B, K]."""


@dataclass(frozen=True)
class Candidate:
    """A way to compute a policy in 16 bits."""

    dtype: torch.dtype
    rounding: str
    trainer: str

    @property
    def name(self) -> str:
        """For the table."""
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind}, {self.rounding}, {self.trainer}"

    @property
    def ours(self) -> bool:
        """Whether it is what the system does."""
        return (self.rounding, self.trainer) == ("thresholds", "merged")


CANDIDATES = [
    Candidate(torch.bfloat16, "nearest", "beside"),
    Candidate(torch.bfloat16, "nearest", "beside in float32"),
    Candidate(torch.bfloat16, "nearest", "merged"),
    Candidate(torch.bfloat16, "random", "merged"),
    Candidate(torch.bfloat16, "thresholds", "merged"),
    Candidate(torch.float16, "nearest", "beside"),
    Candidate(torch.float16, "nearest", "beside in float32"),
    Candidate(torch.float16, "nearest", "merged"),
    Candidate(torch.float16, "random", "merged"),
    Candidate(torch.float16, "thresholds", "beside in float32"),
    Candidate(torch.float16, "thresholds", "merged"),
]


def random_rounding(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded up with the probability of what would be cut off; seeded."""
    near = values.to(dtype)
    rest = values - near.float()
    towards = torch.where(rest > 0, torch.inf, -torch.inf).to(dtype)
    other = torch.where(rest == 0, near, torch.nextafter(near, towards))
    gap = (other.float() - near.float()).abs()
    generator = torch.Generator(values.device).manual_seed(0)
    drawn = torch.rand(values.shape, generator=generator, device=values.device)
    return torch.where(drawn * gap < rest.abs(), other, near)


ROUNDINGS: dict[str, Callable[[Tensor, torch.dtype], Tensor]] = {
    "nearest": lambda values, dtype: values.to(dtype),
    "random": random_rounding,
    "thresholds": rounded,
}


class Beside(nn.Module):
    """W0 x + scaling * B (A x), in the input's type or, of the second term, in float32."""

    def __init__(
        self, layer: nn.Linear, factors: tuple[Tensor, Tensor], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.a, self.b = (factor.to(dtype) for factor in factors)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        further = F.linear(F.linear(x.to(self.a.dtype), self.a), self.b) * SCALING
        return (F.linear(x, self.weight, self.bias) + further).to(x.dtype)


class Policy:
    """One model whose weights can be exchanged."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.model: OpenVLA = load_model(checkpoint, dtype, device).requires_grad_(False)
        self.dtype = dtype
        self.layers = list(lora_layers(self.model.config))
        self.base = {one: self.model.get_submodule(one).weight.data for one in self.layers}

    def serve(self, factors: Factors | None, rounding: str) -> None:
        """From now on its weights are the merged ones; none: W0."""
        for layer, weight in self.base.items():
            merged = weight
            if factors is not None:
                exact = merge(weight, factors[layer], SCALING, torch.float32)
                merged = ROUNDINGS[rounding](exact, self.dtype)
            self.model.get_submodule(layer).weight.data = merged

    @contextlib.contextmanager
    def beside(self, factors: Factors, dtype: torch.dtype) -> Iterator[None]:
        """For now the factors are beside W0."""
        self.serve(None, "nearest")
        plain = {layer: self.model.get_submodule(layer) for layer in self.layers}
        for layer, module in plain.items():
            assert isinstance(module, nn.Linear)
            self.model.set_submodule(layer, Beside(module, factors[layer], dtype))
        yield
        for layer, module in plain.items():
            self.model.set_submodule(layer, module)

    def logprobs(self, actions: Actions) -> Tensor:
        """Of all tokens at once: [B, K]."""
        lengths = torch.full((len(actions.prompts),), actions.prompts.shape[1])
        logits = self.model(actions.pixels, actions.prompts, lengths, actions.tokens).logits
        return self._chosen(logits, actions.tokens)

    def served_logprobs(self, actions: Actions) -> Tensor:
        """Token by token: [B, K]."""
        cache = DynamicCache()
        inputs = self.model.embed(self.model.image_tokens(actions.pixels), actions.prompts)
        logits = []
        for token in actions.tokens.T:
            hidden = self.model.language_model.model(
                inputs_embeds=inputs, past_key_values=cache, use_cache=True
            ).last_hidden_state[:, -1]
            logits.append(self.model.action_logits(hidden))
            inputs = self.model.language_model.model.embed_tokens(token[:, None])
        return self._chosen(torch.stack(logits, dim=1), actions.tokens)

    def _chosen(self, logits: Tensor, tokens: Tensor) -> Tensor:
        bins = tokens - self.model.config.spec.action_ids.start
        logp = (logits.float() / TEMPERATURE).log_softmax(dim=-1)
        return logp.gather(-1, bins[..., None]).squeeze(-1)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a narrower model, fewer actions")
    parser.add_argument("--checkpoint", type=Path, help="default: a small one, scaled to the 7B's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlarl-bench-") as directory:
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            checkpoint = Path(directory) / "small"
            size = (256, 2, 64) if arguments.quick else (512, 4, 128)
            make_checkpoint(checkpoint, *size)
        count = 8 if arguments.quick else 32
        table = Report("precision", "What of an update is left in 16 bits")
        measure(table, checkpoint, torch.device(arguments.device), count)
        sys.exit(0 if table.finish() else 1)


def make_checkpoint(directory: Path, width: int, layers: int, tower: int) -> None:
    """A small OpenVLA whose weights are bfloat16 numbers of deviation 0.02, as the 7B's are."""
    from vlarl.weights.checkpoint import CheckpointReader, save_tensors

    make_tiny_checkpoint(
        directory, image_size=112, tower_dim=tower, text_dim=width, text_layers=layers
    )
    reader = CheckpointReader(directory)
    generator = torch.Generator().manual_seed(1)
    scaled = {}
    for key in reader:
        tensor = reader.tensor(key).float()
        if tensor.ndim == 2:
            tensor = torch.randn(tensor.shape, generator=generator) * DEVIATION
        scaled[key] = tensor.bfloat16()
    save_tensors(directory, scaled.items())


@torch.no_grad()
def measure(table: Report, checkpoint: Path, device: torch.device, count: int) -> None:
    """Fills the table."""
    exact = Policy(checkpoint, torch.float32, device)
    config = exact.model.config
    numbers = sum(one.numel() for one in exact.base.values())
    table.add("weights that are merged", numbers / 1e6, "million")
    learned = some_actions(config, LEARNED, 2, device)
    others = some_actions(config, count, 3, device)
    before = exact.logprobs(others)
    walks = {
        "one direction": dict(trained(exact, learned)),
        "random": dict(wandered(exact.base, device)),
    }
    changes: dict[str, dict[int, Tensor]] = {}
    for walk, stages in walks.items():
        changes[walk] = {}
        for steps, factors in stages.items():
            exact.serve(factors, "nearest")
            changes[walk][steps] = exact.logprobs(others) - before
        sizes = [float(one.square().mean().sqrt()) for one in changes[walk].values()]
        table.add(
            f"{walk}: a log-prob's change after 4 steps",
            sizes[1],
            "nats",
            note=f"{_after(sizes, '.1e')} nats, root mean square",
        )
    del exact
    table.add(EXACT, 1.0, "kept from the 4th step on")
    for dtype in (torch.bfloat16, torch.float16):
        policy = Policy(checkpoint, dtype, device)
        policy.serve(None, "nearest")
        bases = policy.served_logprobs(others), policy.logprobs(others)
        for candidate in [one for one in CANDIDATES if one.dtype == dtype]:
            for walk, stages in walks.items():
                rows = []
                for steps, factors in stages.items():
                    found = both(policy, candidate, factors, others)
                    rows.append(compare(changes[walk][steps], bases, found))
                add(table, f"{candidate.name}: {walk}", rows, candidate.ours and walk != "random")


@dataclass(frozen=True)
class Comparison:
    """A candidate after some steps; see the module's words."""

    server: float
    trainer: float
    noise: float
    k3: float


def add(table: Report, name: str, rows: list[Comparison], wanted: bool) -> None:
    """A candidate's line."""
    kept = min(min(row.server, row.trainer) for row in rows[1:])
    noise = max(row.noise for row in rows[1:])
    table.add(
        name,
        kept,
        "kept from the 4th step on",
        against=EXACT,
        at_least=0.9 if wanted else None,
        note=f"{_after([row.server for row in rows], '.2f')}; trainer "
        f"{_after([row.trainer for row in rows], '.2f')}; noise {noise:.3f} at most, k3 "
        f"{max(row.k3 for row in rows):.0e}",
    )


def _after(values: list[float], form: str) -> str:
    return "/".join(f"{value:{form}}" for value in values)


def both(
    policy: Policy, candidate: Candidate, factors: Factors, actions: Actions
) -> tuple[Tensor, Tensor]:
    """Log-probs of server and trainer."""
    policy.serve(factors, candidate.rounding)
    served = policy.served_logprobs(actions)
    if candidate.trainer == "merged":
        return served, policy.logprobs(actions)
    beside = torch.float32 if candidate.trainer.endswith("float32") else candidate.dtype
    with policy.beside(factors, beside):
        return served, policy.logprobs(actions)


def compare(
    change: Tensor, bases: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]
) -> Comparison:
    """What server and trainer have of a change; NaN where a number overflowed."""
    whole = change.square().sum()
    server, trainer = (
        float(((one - base) * change).sum() / whole) for one, base in zip(found, bases, strict=True)
    )
    difference = found[0] - found[1]
    noise = float((difference.square().mean() / change.square().mean()).sqrt())
    return Comparison(server, trainer, noise, float((difference.exp() - 1 - difference).mean()))


def some_actions(config: OpenVLAConfig, count: int, seed: int, device: torch.device) -> Actions:
    """Noise for eyes, words at random and actions at random."""
    generator = torch.Generator().manual_seed(seed)
    channels, side = 3 * len(config.towers), config.spec.image_size
    ids = config.spec.action_ids
    prompts = torch.randint(3, min(500, ids.start), (count, PROMPT), generator=generator)
    tokens = torch.randint(
        ids.start, ids.stop, (count, config.spec.action_dim), generator=generator
    )
    pixels = torch.randn((count, channels, side, side), generator=generator)
    return Actions(pixels.to(device), prompts.to(device), tokens.to(device))


def trained(policy: Policy, actions: Actions) -> Iterator[tuple[int, Factors]]:
    """Factors after each number of AdamW's steps that make these actions likelier."""
    factors = new_factors(policy.base)
    flat = [factor.requires_grad_() for pair in factors.values() for factor in pair]
    optimizer = torch.optim.AdamW(flat, lr=RATE, weight_decay=0.0, eps=1e-5)
    # Half of them become likelier and half less likely, as advantages do.
    signs = torch.ones(len(actions.tokens), 1, device=flat[0].device)
    signs[::2] = -1.0
    for step in range(1, STEPS[-1] + 1):
        with torch.enable_grad(), policy.beside(factors, torch.float32):
            loss = -(signs * policy.logprobs(actions)).sum(dim=1).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in STEPS:
            yield (
                step,
                {one: (a.detach().clone(), b.detach().clone()) for one, (a, b) in factors.items()},
            )


def wandered(base: Weights, device: torch.device) -> Iterator[tuple[int, Factors]]:
    """Factors after each number of steps of AdamW's size in directions drawn at random."""
    factors = new_factors(base)
    generator = torch.Generator().manual_seed(4)
    for step in range(1, STEPS[-1] + 1):
        for pair in factors.values():
            for factor in pair:
                drawn = torch.randint(0, 2, factor.shape, generator=generator) * 2 - 1
                factor.add_(RATE * drawn.to(device))
        if step in STEPS:
            yield step, {one: (a.clone(), b.clone()) for one, (a, b) in factors.items()}


def new_factors(base: Weights) -> dict[str, tuple[Tensor, Tensor]]:
    """A gaussian of deviation 1 / rank, B zero, as peft draws them."""
    generator = torch.Generator().manual_seed(5)
    factors = {}
    for layer, weight in base.items():
        rank = min(RANK, *weight.shape)
        a = torch.randn((rank, weight.shape[1]), generator=generator) / RANK
        factors[layer] = a.to(weight.device), torch.zeros(len(weight), rank, device=weight.device)
    return factors


if __name__ == "__main__":
    main()
