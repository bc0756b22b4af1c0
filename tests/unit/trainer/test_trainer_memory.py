"""What a rank keeps in memory: the arithmetic against autograd's own account, and what follows."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from torch import Tensor  # noqa: E402

from benchmarks.sizing import openvla_7b  # noqa: E402
from tests.integration.trainer.chunk_samples import make_chunk_checkpoint  # noqa: E402
from vlarl.config import LoraConfig, PpoConfig, TrainerConfig  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl.learning.trainable import LoraPolicy  # noqa: E402
from vlarl.models.network import ObservationBatch  # noqa: E402
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.models.registry import policy_family  # noqa: E402
from vlarl_trainer.memory import (  # noqa: E402
    GIB,
    PROMPT_TOKENS,
    Placement,
    memory_bytes,
    parameter_counts,
    place,
    sequence_length,
    tensors,
)

pytestmark = pytest.mark.torch
ALONE = Ranks.alone(torch.device("cpu"))
KEPT = Placement(sharded=False, recomputed=False)
AGAIN = Placement(sharded=False, recomputed=True)
ROWS = 2


@pytest.fixture(scope="module")
def seven_b() -> OpenVLAConfig:
    return openvla_7b()


def config(**changes: object) -> TrainerConfig:
    """As configs/libero-7b.toml, but for what is left open."""
    return TrainerConfig.model_validate(
        {"ppo": PpoConfig(mini_batch=128, micro_batch=16), "dtype": "bfloat16"} | changes
    )


def saved_bytes(policy: LoraPolicy) -> int:
    """What autograd keeps of a pass, weights apart."""
    own = {one.untyped_storage().data_ptr() for one in policy._model.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (where := tensor.untyped_storage().data_ptr()) not in own:
            saved[where] = tensor
        return tensor

    model = policy.config
    spec = model.spec
    prompt = PROMPT_TOKENS - (spec.action_dim - 1)
    size, images = spec.image_size, len(spec.cameras)
    observations = ObservationBatch(
        torch.randn(ROWS, 3 * len(model.towers) * images, size, size),
        torch.ones(ROWS, prompt, dtype=torch.int64),
        torch.full((ROWS,), prompt),
        torch.randn(ROWS, spec.proprio_dim) if spec.proprio_dim else None,
    )
    tokens = torch.full((ROWS, spec.tokens), spec.action_ids.start)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        policy.logprobs(observations, tokens, 1.0)
    return sum(one.untyped_storage().nbytes() for one in saved.values())


@pytest.fixture(scope="module", params=[make_tiny_checkpoint, make_chunk_checkpoint])
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of either family, of which blocks are most."""
    folder = tmp_path_factory.mktemp("deep")
    request.param(folder, tower_depth=5, text_dim=256, text_layers=6)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("again", [False, True])
def test_the_arithmetic_bounds_what_autograd_keeps(
    deep: Path, dtype: torch.dtype, again: bool
) -> None:
    model = policy_family(deep).sizes
    policy = LoraPolicy(
        deep,
        LoraConfig(rank=1),
        dtype=dtype,
        seed=0,
        ranks=ALONE,
        activation_checkpointing=again,
    )
    trainer = config(ppo=PpoConfig(mini_batch=ROWS, micro_batch=ROWS))
    found = tensors(trainer, model, AGAIN if again else KEPT, itemsize=dtype.itemsize)
    parts = ["projector's activations", "embedding and last norm"]
    parts.append("inputs of blocks" if again else "activations of blocks")
    # Reached: 0.79 and 0.96 in bfloat16, 0.71 and 0.96 in float32; of chunks 0.86 and 0.98, 0.75
    # and 0.97.
    assert 0.7 < saved_bytes(policy) / sum(found[part] for part in parts) < 1.0


@pytest.mark.parametrize(
    ("gib", "ranks", "expected"),
    [
        (20, 1, AGAIN),  # alone there is nobody to share with
        (20, 8, Placement(sharded=True, recomputed=True)),
        (37, 8, AGAIN),  # half of an 80 GB GPU
        (50, 8, AGAIN),  # kept activations would ask for too small micro-batches
        (66, 8, Placement(sharded=False, recomputed=False, most_tokens=4800)),
        (80, 1, KEPT),
    ],
)
def test_weights_lie_whole_and_activations_are_kept_where_they_fit(
    seven_b: OpenVLAConfig, gib: float, ranks: int, expected: Placement
) -> None:
    trainer, memory = config(), int(gib * GIB)
    found = place(trainer, seven_b, ranks=ranks, itemsize=2, memory_bytes=memory)
    assert found == expected
    if gib >= 37:
        taken = tensors(trainer, seven_b, found, ranks=ranks)
        assert sum(taken.values()) < memory


def test_what_the_configuration_says_is_done(seven_b: OpenVLAConfig) -> None:
    asked = config(
        sharding="shard",
        activation_checkpointing=False,
        ppo=PpoConfig(mini_batch=128, micro_batch=16, micro_batch_tokens=3000),
    )
    found = place(asked, seven_b, ranks=2, itemsize=2, memory_bytes=GIB)
    assert found == Placement(sharded=True, recomputed=False, most_tokens=3000)
    whole = config(sharding="replicate", activation_checkpointing=True)
    assert place(whole, seven_b, ranks=2, itemsize=2, memory_bytes=GIB) == AGAIN


def test_the_budget_is_stated_or_half_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)  # vLLM sets it
    assert memory_bytes(config(memory_gib=1.5), ALONE) == 3 * 2**29
    whole = memory_bytes(config(), ALONE)
    assert whole > GIB // 4
    assert memory_bytes(config(), Ranks(0, 4, ALONE.device, None)) == whole // 4


def test_a_samples_length_is_the_networks(tmp_path: Path) -> None:
    """Two cameras, proprioception, 56 tokens, of a prompt as long as is allowed for."""
    make_chunk_checkpoint(tmp_path)
    family = policy_family(tmp_path)
    network = family.network(torch.float32, ALONE.device)
    prompt = np.array([PROMPT_TOKENS - (family.spec.action_dim - 1)])
    assert sequence_length(family.sizes) == network.sequence_lengths(prompt)[0] == 8 + 58 + 56 + 2
    counted = sum(parameter_counts(family.sizes).values())
    assert counted == sum(one.numel() for one in network.parameters())
