"""The swap's half in the engine: what a merge makes, beside what serves, and with which threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
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
from vlarl.weights.merge import checksum, merged_tensors  # noqa: E402
from vlarl_policy import vllm_worker  # noqa: E402
from vlarl_policy.merge_answer import MergeError, read_answer  # noqa: E402
from vlarl_policy.vllm_engine import merge_threads  # noqa: E402
from vlarl_policy.vllm_worker import MergeWorker  # noqa: E402

pytestmark = pytest.mark.torch


class Products(TorchFunctionMode):
    """Threads that torch had at each matrix product of a merge."""

    threads: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.threads = []

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if function is torch.addmm:
            self.threads.append(torch.get_num_threads())
        return function(*args, **kwargs or {})


class Worker(MergeWorker):
    """The extension on a worker whose model is in plain torch."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = load_model(checkpoint)
        self.model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
        for layer in self.model.language_model.model.layers:
            # As vLLM has them.
            attention = layer.self_attn
            parts = [attention.q_proj, attention.k_proj, attention.v_proj]
            attention.qkv_proj = torch.nn.Linear(1, 1, bias=False)
            attention.qkv_proj.weight.data = torch.cat([part.weight.data for part in parts])
        self.model_config = SimpleNamespace(model=checkpoint, dtype=torch.float32)

    def get_model(self) -> OpenVLA:
        return self.model

    def prepare(self, adapter: Adapter | None, folder: Path, threads: int = 1) -> dict[str, int]:
        """Waits for it, as the engine does."""
        path = None
        if adapter is not None:
            path = str(folder / "adapter")
            write_adapter(adapter, Path(path))
        checked = list(adapter.factors) if adapter else []
        with ran_in_this_thread():
            self.prepare_adapter(path, checked, threads, str(folder / "answer.json"))
        checksums = read_answer(folder / "answer.json")
        assert checksums is not None
        assert read_answer(folder / "answer.json") is None
        return checksums

    def weights(self) -> dict[str, torch.Tensor]:
        """What serves, whole modules."""
        return {key: value.clone() for key, value in self.model.state_dict().items()}


@contextmanager
def ran_in_this_thread() -> Iterator[None]:
    """So that a mode sees what is called."""

    class Here:
        def __init__(
            self, _: int, __: str, initializer: Callable[[int], None], args: tuple[int]
        ) -> None:
            self._begin = lambda: initializer(*args)

        def submit(self, call: Callable[..., object], *args: object) -> Future[object]:
            self._begin()
            future: Future[object] = Future()
            try:
                future.set_result(call(*args))
            except Exception as error:  # noqa: BLE001 - as a thread does
                future.set_exception(error)
            return future

        def shutdown(self, *, wait: bool) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_worker, "ThreadPoolExecutor", Here)
        yield


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


def adapter(checkpoint: Path, ends: tuple[str, ...] = ("",), seed: int = 0) -> Adapter:
    layers = lora_layers(OpenVLAConfig.from_directory(checkpoint))
    generator = torch.Generator().manual_seed(seed)
    factors = {
        layer: (
            torch.randn(4, into, generator=generator),
            torch.randn(out, 4, generator=generator),
        )
        for layer, (out, into) in layers.items()
        if layer.endswith(ends)
    }
    assert factors
    return Adapter("run", 1, "b" * 64, 0.5, factors)


def merged_by_hand(checkpoint: Path, moved: Adapter) -> dict[str, torch.Tensor]:
    layers = lora_layers(OpenVLAConfig.from_directory(checkpoint))
    return dict(
        merged_tensors(
            checkpoint, layers, moved.factors, moved.scaling, torch.float32, restore=list(layers)
        )
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_a_merge_has_its_threads_and_they_are_no_part_of_what_it_makes(
    checkpoint: Path, tmp_path: Path, threads: int
) -> None:
    moved = adapter(checkpoint)
    worker, products = Worker(checkpoint), Products()
    with products:
        checksums = worker.prepare(moved, tmp_path, threads)
    assert set(products.threads) == {threads}
    assert len(products.threads) == len(moved.factors)
    expected = merged_by_hand(checkpoint, moved)
    assert checksums == {layer: checksum(expected[f"{layer}.weight"]) for layer in moved.factors}


def test_nothing_serves_before_the_exchange_and_all_of_it_after(
    checkpoint: Path, tmp_path: Path
) -> None:
    worker = Worker(checkpoint)
    before = worker.weights()
    moved = adapter(checkpoint)
    worker.prepare(moved, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in worker.weights().items())
    worker.exchange_weights()
    expected = merged_by_hand(checkpoint, moved)
    after = worker.weights()
    for layer in lora_layers(OpenVLAConfig.from_directory(checkpoint)):
        if layer.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj"):
            continue
        assert torch.equal(after[f"{layer}.weight"], expected[f"{layer}.weight"]), layer
    parts = [f"language_model.model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    fused = after["language_model.model.layers.0.self_attn.qkv_proj.weight"]
    assert torch.equal(fused, torch.cat([expected[part] for part in parts]))


def test_layers_that_an_adapter_leaves_alone_go_back(checkpoint: Path, tmp_path: Path) -> None:
    worker = Worker(checkpoint)
    before = worker.weights()
    worker.prepare(adapter(checkpoint), tmp_path)
    worker.exchange_weights()
    worker.prepare(adapter(checkpoint, ("1.self_attn.k_proj",), seed=2), tmp_path)
    worker.exchange_weights()
    changed = [
        key for key, value in worker.weights().items() if not torch.equal(value, before[key])
    ]
    assert changed == ["language_model.model.layers.1.self_attn.qkv_proj.weight"]
    worker.prepare(None, tmp_path)
    worker.exchange_weights()
    assert all(torch.equal(value, before[key]) for key, value in worker.weights().items())


def test_a_merge_that_fails_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    worker = Worker(checkpoint)
    worker.prepare(adapter(checkpoint), tmp_path)
    worker.exchange_weights()
    before = worker.weights()
    broken = adapter(checkpoint, seed=3)
    a, b = broken.factors["projector.fc3"]
    broken.factors["projector.fc3"] = (a[:2], b)
    with pytest.raises(MergeError, match=r"projector\.fc3"):
        worker.prepare(broken, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in worker.weights().items())


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
