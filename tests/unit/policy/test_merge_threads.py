"""How many threads merge an adapter, and how many are left after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode  # noqa: E402
from vllm.utils.torch_utils import available_cpu_count  # noqa: E402

from vlarl.config import PolicyConfig  # noqa: E402
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.models.openvla.lora import lora_layers  # noqa: E402
from vlarl.models.openvla.network import OpenVLA, load_model  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.weights.adapter import Adapter, write_adapter  # noqa: E402
from vlarl.weights.checkpoint import tensors_digest  # noqa: E402
from vlarl.weights.merge import merged_tensors  # noqa: E402
from vlarl_policy.vllm_engine import merge_threads  # noqa: E402
from vlarl_policy.vllm_worker import MergeWorker  # noqa: E402

pytestmark = pytest.mark.torch


class Products(TorchFunctionMode):
    """Threads that torch had at each matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if function in (torch.Tensor.matmul, torch.Tensor.__matmul__):
            self.threads.append(torch.get_num_threads())
        return function(*args, **kwargs or {})


class Worker(MergeWorker):
    """The extension on a worker whose model is in plain torch; nothing of the language model's."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = load_model(checkpoint)
        self.model.packed_modules_mapping = {}
        self.model.load_weights = list
        self.model_config = SimpleNamespace(model=checkpoint, dtype=torch.float32)

    def get_model(self) -> OpenVLA:
        return self.model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("threads") / "tiny"
    make_tiny_checkpoint(directory, image_size=56)
    return directory


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What vLLM leaves on CUDA."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def adapter(checkpoint: Path) -> Adapter:
    layers = lora_layers(OpenVLAConfig.from_directory(checkpoint))
    factors = {
        layer: (torch.randn(4, into), torch.randn(out, 4))
        for layer, (out, into) in layers.items()
        if layer.startswith(("vision_backbone", "projector"))
    }
    assert factors
    return Adapter("run", 1, "b" * 64, 0.5, factors)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_merge_has_its_threads_and_puts_the_engines_back(
    checkpoint: Path, tmp_path: Path, threads: int
) -> None:
    moved = adapter(checkpoint)
    write_adapter(moved, tmp_path / "adapter")
    worker, products = Worker(checkpoint), Products()
    with products:
        digest = worker.merge_adapter(str(tmp_path / "adapter"), threads)
    assert set(products.threads) == {threads}
    assert len(products.threads) == len(moved.factors)
    assert torch.get_num_threads() == 1
    # What one thread gives: threads are no part of what is served.
    merged = merged_tensors(
        checkpoint,
        lora_layers(OpenVLAConfig.from_directory(checkpoint)),
        moved.factors,
        moved.scaling,
        torch.float32,
    )
    assert digest == tensors_digest(merged)


def test_a_merge_that_fails_puts_the_engines_threads_back(checkpoint: Path, tmp_path: Path) -> None:
    write_adapter(adapter(checkpoint), tmp_path / "adapter")
    worker, products = Worker(checkpoint), Products()
    narrow = torch.nn.Parameter(torch.zeros(1, 1), requires_grad=False)
    worker.model.get_submodule("projector.fc3").weight = narrow
    with products, pytest.raises(RuntimeError, match="shape"):
        worker.merge_adapter(str(tmp_path / "adapter"), 3)
    assert set(products.threads) == {3}
    assert torch.get_num_threads() == 1


def test_an_engine_that_has_more_threads_keeps_them(checkpoint: Path, tmp_path: Path) -> None:
    write_adapter(adapter(checkpoint), tmp_path / "adapter")
    torch.set_num_threads(4)
    worker, products = Worker(checkpoint), Products()
    with products:
        worker.merge_adapter(str(tmp_path / "adapter"), 2)
    assert set(products.threads) == {4}


@pytest.mark.parametrize(
    ("configured", "variable", "expected"),
    [(3, "5", 3), (None, "5", 5), (None, "", None), (None, "many", None)],
)
def test_a_merge_may_use_what_is_configured_or_all_that_the_process_has(
    monkeypatch: pytest.MonkeyPatch, configured: int | None, variable: str, expected: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    config = PolicyConfig(cpu_threads=configured)
    assert merge_threads(config) == (expected or available_cpu_count())
