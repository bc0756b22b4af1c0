"""Against the numbers of the original code, for both conventions and all inputs."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from tests.unit.openvla_oft.oft_golden import GOLDEN, INPUTS, make_checkpoint, write_settings
from vlarl.models.network import ActionForward, ObservationBatch, pad_prompts
from vlarl.models.openvla_oft.losses import supervised_loss
from vlarl.models.openvla_oft.network import OpenVLAOFT, load_model
from vlarl.models.openvla_oft.processor import ChunkProcessor
from vlarl.weights.checkpoint import save_tensors
from vlarl.weights.folder import CheckpointError

pytestmark = pytest.mark.torch

KEY = "libero_spatial_no_noops"
FIRST = 768
"""The lowest action id."""
NUMBERS = np.load(GOLDEN / "golden.npz", allow_pickle=False)
TEXT = json.loads((GOLDEN / "golden.json").read_text())
NAMES = [f"{convention}_{given}" for convention in ("stop", "nostop") for given in INPUTS]


@dataclass
class Case:
    """A checkpoint, six observations, and what the originals make of them."""

    name: str
    model: OpenVLAOFT
    processor: ChunkProcessor
    batch: ObservationBatch

    def original(self, what: str) -> torch.Tensor:
        return torch.from_numpy(NUMBERS[f"{self.name}_{what}"])

    @functools.cached_property
    def plain(self) -> ActionForward:
        """What a pass says of all six."""
        return run(self.model, self.batch)

    @functools.cached_property
    def supervised(self) -> ActionForward:
        """The same, as supervision needs it."""
        return run(self.model, self.batch, supervised=True)


def run(
    model: OpenVLAOFT,
    batch: ObservationBatch,
    rows: slice = slice(None),
    supervised: bool = False,
) -> ActionForward:
    with torch.inference_mode():
        output: ActionForward = model(
            batch.pixel_values[rows],
            batch.prompt_ids[rows],
            batch.prompt_lengths[rows],
            None if batch.proprio is None else batch.proprio[rows],
            supervised,
        )
    return output


def _case(directory: Path, name: str) -> Case:
    model = load_model(make_checkpoint(directory, name))
    processor = ChunkProcessor(directory, model.chunked, center_crop=False)
    frames = np.stack([NUMBERS["images"], NUMBERS["wrist_images"]], axis=1)
    proprio = processor.proprioception(NUMBERS["proprio"], KEY) if "proprio" in name else None
    batch = processor.batch(
        frames[:, : len(model.chunked.spec.cameras)],
        [processor.prompt(instruction) for instruction in TEXT["instructions"]],
        torch.device("cpu"),
        proprio,
    )
    return Case(name, model, processor, batch)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    return {name: _case(tmp_path_factory.mktemp(name), name) for name in NAMES}


@pytest.fixture(params=NAMES)
def case(cases: Mapping[str, Case], request: pytest.FixtureRequest) -> Case:
    return cases[request.param]


def test_a_padded_batch_gives_the_originals_logits(case: Case) -> None:
    """Prompts of 9 to 31 tokens in one batch. Reached: 8e-5 on logits of size 13 (fp32)."""
    assert case.batch.prompt_lengths.unique().numel() > 3
    ours = case.plain
    assert ours.logits.shape == (6, 56, 256)
    torch.testing.assert_close(ours.logits, case.original("logits"), atol=5e-4, rtol=0)
    torch.testing.assert_close(ours.feature, case.original("hidden"), atol=5e-4, rtol=0)
    images = len(case.model.chunked.spec.cameras)
    assert ours.image_tokens.shape == (6, images * 256, 128)
    assert case.model.patches == images * 256


def test_greedy_tokens_and_actions_are_the_originals(case: Case) -> None:
    tokens = case.plain.logits.argmax(dim=-1) + FIRST
    assert torch.equal(tokens, case.original("tokens").long())
    actions = case.processor.actions(tokens.numpy(), case.processor.spec.statistics(KEY))
    assert actions.shape == (6, 8, 7)
    np.testing.assert_array_equal(actions, case.original("actions").numpy())


@pytest.mark.parametrize(
    ("drawn", "logprobs", "temperature"),
    [
        ("tokens", "logprobs", 1.6),
        ("tokens", "logprobs_t1", 1.0),
        ("sampled", "sampled_logprobs", 1.6),
    ],
)
def test_log_probs_are_the_originals(
    case: Case, drawn: str, logprobs: str, temperature: float
) -> None:
    distribution = (case.plain.logits / temperature).log_softmax(dim=-1)
    chosen = case.original(drawn).long() - FIRST
    ours = distribution.gather(-1, chosen[..., None])[..., 0]
    torch.testing.assert_close(ours, case.original(logprobs), atol=5e-4, rtol=0)


def test_padding_and_company_change_nothing(case: Case) -> None:
    """Alone, without padding and without a mask, against in a batch padded with any id."""
    model, batch = case.model, case.batch
    wider = F.pad(batch.prompt_ids, (0, 5), value=1000)
    together = run(model, replace(batch, prompt_ids=wider))
    for row, length in enumerate(batch.prompt_lengths.tolist()):
        proprio = None if batch.proprio is None else batch.proprio[row : row + 1]
        with torch.inference_mode():
            alone = model(
                batch.pixel_values[row : row + 1],
                batch.prompt_ids[row : row + 1, :length],
                proprio=proprio,
            )
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together.feature[row], alone.feature[0], atol=1e-4, rtol=0)


def test_the_conventions_differ(cases: Mapping[str, Case]) -> None:
    stop, without = (cases[name].plain.logits for name in ("stop_img1", "nostop_img1"))
    assert (stop - without).abs().mean() > 0.1


def test_every_input_is_read(cases: Mapping[str, Case]) -> None:
    case = cases["stop_img2_proprio"]
    assert case.batch.proprio is not None
    wrist = case.batch.pixel_values.clone()
    wrist[:, 6:] += 0.5
    before = case.plain.logits
    for changed in (
        replace(case.batch, pixel_values=wrist),
        replace(case.batch, proprio=case.batch.proprio + 0.5),
    ):
        assert (run(case.model, changed).logits - before).abs().max() > 0.01


def test_supervised_losses_are_the_originals(cases: Mapping[str, Case]) -> None:
    """56 action ids and stop, over all 1,088 ids; one sample alone, and the padded batch."""
    case = cases["stop_img1"]
    ids = torch.from_numpy(NUMBERS["sft_tokens"]).long()
    encoded = case.processor.action_tokenizer.encode(NUMBERS["sft_actions"])
    np.testing.assert_array_equal(encoded.reshape(6, 56), ids)
    logits = case.supervised.logits
    assert logits.shape == (6, 57, 1088)
    batch = supervised_loss(logits, ids).item()
    assert batch == pytest.approx(float(NUMBERS["sft_loss_batch"]), abs=1e-4)
    for row, loss in enumerate(NUMBERS["sft_loss_each"]):
        one = run(case.model, case.batch, slice(row, row + 1), supervised=True).logits
        assert supervised_loss(one, ids[row : row + 1]).item() == pytest.approx(loss, abs=1e-4)


@torch.inference_mode()
def test_without_stop_the_loss_is_a_plain_llamas(cases: Mapping[str, Case]) -> None:
    """No original trains so: the same targets, over a sequence built here, mask and all."""
    case = cases["nostop_img1"]
    ids = torch.from_numpy(NUMBERS["sft_tokens"]).long()
    losses = []
    for row, length in enumerate(case.batch.prompt_lengths.tolist()):
        prompt = case.batch.prompt_ids[row : row + 1, :length]
        image = case.model.image_tokens(case.batch.pixel_values[row : row + 1])
        text = case.model.embed(image, prompt)
        inputs = torch.cat([text, torch.zeros(1, 56, 128)], dim=1)
        full = torch.zeros(1, 1, inputs.shape[1], inputs.shape[1])
        logits = case.model.language_model(inputs_embeds=inputs, attention_mask=full).logits
        targets = torch.cat([ids[row], torch.tensor([2])])
        losses.append(F.cross_entropy(logits[0, -57:], targets))
    ours = supervised_loss(case.supervised.logits, ids)
    torch.testing.assert_close(ours, torch.stack(losses).mean(), atol=1e-4, rtol=0)


def test_supervised_and_plain_passes_agree(case: Case) -> None:
    action_ids = slice(FIRST, FIRST + 256)
    whole = case.supervised.logits[:, :56, action_ids]
    torch.testing.assert_close(whole, case.plain.logits, atol=1e-5, rtol=0)


def test_checkpointed_gradients_are_the_same(cases: Mapping[str, Case]) -> None:
    case = cases["stop_img2_proprio"]
    ids = torch.from_numpy(NUMBERS["sft_tokens"][:2]).long()
    gradients = []
    for checkpointed in (False, True):
        model = load_model(case.processor._checkpoint).train()
        if checkpointed:
            model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = case.batch
        assert batch.proprio is not None
        logits = model(
            batch.pixel_values[:2],
            batch.prompt_ids[:2],
            batch.prompt_lengths[:2],
            batch.proprio[:2],
            supervised=True,
        ).logits
        supervised_loss(logits, ids).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    unused = tuple(case.model.unused_prefixes)
    for name, gradient in gradients[0].items():
        assert (gradient is None) == name.startswith(unused), name
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name])


def test_bfloat16_stays_close(cases: Mapping[str, Case]) -> None:
    case = cases["stop_img2_proprio"]
    model = load_model(case.processor._checkpoint, torch.bfloat16)
    logits = run(model, case.batch).logits
    assert logits.dtype == torch.float32
    assert (logits - case.original("logits")).abs().mean() < 0.15


def test_inputs_of_another_policy_are_refused(cases: Mapping[str, Case]) -> None:
    one, three = cases["stop_img1"], cases["stop_img2_proprio"]
    pixels, ids = three.batch.pixel_values, three.batch.prompt_ids
    with pytest.raises(ValueError, match=r"has 12 channels, .* needs 6 for each .*: agentview$"):
        one.model(pixels, ids)
    with pytest.raises(ValueError, match="the policy needs proprioception"):
        three.model(pixels, ids)
    with pytest.raises(ValueError, match="the policy reads no proprioception"):
        one.model(pixels[:, :6], ids, proprio=three.batch.proprio)


def test_weights_of_a_policy_without_proprioception_are_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "stop_img1")
    write_settings(tmp_path, proprio=8)
    with pytest.raises(CheckpointError, match="unexpected: proprio_projector"):
        load_model(tmp_path)
    save_tensors(tmp_path, load_file(GOLDEN / "proprio_projector.safetensors").items())
    with pytest.raises(CheckpointError, match="missing or unexpected: language_model"):
        load_model(tmp_path)


def test_prompts_are_the_originals(cases: Mapping[str, Case]) -> None:
    ids, lengths = pad_prompts(TEXT["prompt_ids"], TEXT["pad_token_id"])
    for case in cases.values():
        assert torch.equal(case.batch.prompt_ids, ids)
        assert torch.equal(case.batch.prompt_lengths, lengths)
