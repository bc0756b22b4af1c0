"""The arithmetic of benchmarks/cluster.py against measurements, and the manifests against it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from benchmarks import cluster, operations
from benchmarks.cluster import GB, Cluster, simulators_bytes
from benchmarks.sizing import GPU_BYTES, models_7b, openvla_7b, policy_budget
from tests.unit.deploy.tools import KUBERNETES, OVERLAYS, Object, built
from vlarl.config import load_config
from vlarl.models.openvla.config import OpenVLAConfig

pytestmark = pytest.mark.torch

GPU_RUN = KUBERNETES / "overlays/gpu/run.toml"
PAGE = Path("docs/benchmarks.md").read_text()


def measured(name: str) -> float:
    """The number in a row of docs/benchmarks.md."""
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    return float(row.split("|")[2].replace(",", ""))


@pytest.mark.parametrize("profile", ["faithful", "fast"])
@pytest.mark.parametrize("scenes", [1, 2, 4])
def test_simulators_take_what_was_measured(profile: str, scenes: int) -> None:
    expected = measured(f"{profile}: simulator, {scenes} scenes") * 1e6
    got = simulators_bytes(profile, scenes, 1) - cluster.ENV_SERVER_BYTES
    assert 0.98 <= got / expected <= 1.15


def test_frames_take_what_was_measured() -> None:
    frames = 256 * (cluster.STEPS + 1) * cluster.FRAME_BYTES
    redis = measured("256 episodes, 1 rank: Valkey, at most") * 1e6
    assert 1.0 <= cluster.REDIS_AT_ONCE * frames / redis <= 1.15
    assert measured("256 episodes, 1 rank, file: Valkey, at most") * 1e6 < cluster.REDIS_WITH_FILES
    for ranks in ("1 rank", "2 ranks", "8 ranks"):
        own = measured(f"256 episodes, {ranks}: rank 0 alone, at most")
        assert own <= cluster.RANK_COPIES, ranks
        assert measured(f"256 episodes, {ranks}: shared by ranks") == pytest.approx(1.0, abs=0.01)
    seconds = measured("256 episodes, 1 rank: score") / 1e3
    assert 1 / seconds > cluster.SCORED_A_SECOND


@pytest.fixture(scope="module")
def model() -> OpenVLAConfig:
    return openvla_7b()


def test_max_batch_is_worth_what_its_comments_say(model: OpenVLAConfig) -> None:
    most = cluster.answers_a_second(model, 256)
    shares = [cluster.answers_a_second(model, number) / most for number in (16, 32, 64)]
    assert shares == pytest.approx([0.76, 0.88, 0.95], abs=0.005)
    for config, number in (("configs/libero-7b.toml", 32), (GPU_RUN, 64)):
        assert load_config(Path(config)).policy.max_batch == number


@pytest.mark.parametrize("name", models_7b())
def test_the_page_says_how_fast_policy_servers_can_be(name: str) -> None:
    row = " | ".join([name, *cluster.answer_row(models_7b()[name])])
    assert f"| {row} |" in Path("docs/sizing.md").read_text()


@pytest.mark.parametrize(
    ("name", "prompt", "tokens"), [("OpenVLA", 57, 7), ("OpenVLA-OFT, one camera", 60, 56)]
)
def test_an_answers_operations_are_its_layers(
    model: OpenVLAConfig, name: str, prompt: int, tokens: int
) -> None:
    """Layer by layer, with attention's products and without logits that nobody asks for."""
    answer = cluster.Answer.of(models_7b()[name])
    least = operations.least(model, 32, prompt, tokens)
    assert answer.first + answer.passes - 1 == 256 + prompt + tokens - 1
    assert answer.operations == pytest.approx(least.forward, rel=0.03)


def test_a_policy_pod_fits_its_gpu(model: OpenVLAConfig) -> None:
    budget = policy_budget(load_config(Path(GPU_RUN)), model)
    assert sum(budget.values()) < 0.9 * GPU_BYTES


def test_the_page_shows_what_the_program_prints(model: OpenVLAConfig) -> None:
    columns = [cluster.rows(one, model) for one in cluster.CLUSTERS]
    page = Path("docs/sizing.md").read_text()
    for name in columns[0]:
        assert f"| {name} | {' | '.join(column[name] for column in columns)} |" in page, name


def bytes_of(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Gi|Mi)", quantity).groups()
    return int(number) * {"Gi": 2**30, "Mi": 2**20}[unit]


def resources(overlay: str, name: str) -> Object:
    (found,) = [
        one["spec"]["template"]["spec"]["containers"][0]["resources"]
        for one in built(overlay)
        if one["metadata"]["name"] == name and one["kind"] in ("Deployment", "StatefulSet")
    ]
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_may_take_what_their_run_takes(overlay: str) -> None:
    config = load_config(KUBERNETES / "overlays" / overlay / "run.toml")
    env = config.env
    simulators = simulators_bytes(env.profile, env.cached_tasks, env.processes)
    pod = resources(overlay, "env")
    assert bytes_of(pod["requests"]["memory"]) >= simulators
    assert bytes_of(pod["limits"]["memory"]) >= 1.2 * simulators
    assert float(pod["requests"]["cpu"]) >= env.processes / cluster.SIMULATORS_A_CORE
    # Of as many episodes as KEDA's pods have simulators.
    largest = Cluster(8, 1, ranks_a_node=7, simulators=16 * env.processes, staleness=1)
    assert bytes_of(resources(overlay, "redis")["requests"]["memory"]) >= largest.redis_bytes
    assert bytes_of(resources(overlay, "redis")["limits"]["memory"]) >= 2 * largest.redis_bytes


def test_a_trainer_may_take_what_its_run_takes() -> None:
    (job,) = [one for one in built("gpu") if one["kind"] == "TrainJob"]
    node = job["spec"]["trainer"]["resourcesPerNode"]
    (one_gpu, *_) = cluster.CLUSTERS
    weights = 16 * GB  # which the trainer merges on its CPUs
    assert bytes_of(node["requests"]["memory"]) >= one_gpu.node_bytes + weights
