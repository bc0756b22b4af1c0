"""Scene files as people write them, built by LIBERO."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.rollout.v1 import rollout_pb2

pytestmark = pytest.mark.sim


def test_a_scene_of_any_encoding_runs_under_its_own_words(tmp_path: Path) -> None:
    from vlarl_env.simulators.episode import Simulator
    from vlarl_env.simulators.libero.suites import SHIPPED_SUITES
    from vlarl_env.simulators.registry import TaskCatalog

    scene = (SHIPPED_SUITES["reach"] / "reach_the_point_above_the_bowl.bddl").read_text("utf-8")
    words = "把碗 (the black one)"
    scene = scene.replace("reach the point above the bowl", words).replace("\n", "\r\n")
    scene = scene.replace("(And (ReachedAbove", "(AND (REACHEDABOVE")
    (tmp_path / "A BOWL.BDDL").write_bytes(b"\xef\xbb\xbf" + scene.encode())
    (tmp_path / "._A BOWL.BDDL").write_bytes(b"\x00\x05\x16\x07")
    (task,) = TaskCatalog({"mine": tmp_path}).tasks("mine")
    simulator = Simulator(task, EnvConfig(profile="fast", render_size=64))
    asked = rollout_pb2.Task(suite="mine", index=0)
    seen = simulator.reset(env_pb2.ResetEpisode(task=asked, placement_seed=3))
    for _ in range(60):
        if not (seen.terminated or seen.truncated):
            seen = simulator.step(env_pb2.StepEpisode(action=[1.0, 0, -0.7, 0, 0, 0, 1.0]))
    assert seen.terminated
    assert seen.instruction == words
    simulator.close()


def test_an_expert_without_room_is_hopeless_not_dead(crowded: Path) -> None:
    from vlarl_jobs.demonstrations.messages import PlayOrder, Settings
    from vlarl_jobs.demonstrations.player import Player

    player = Player(Settings(job="play", profile="fast", suites={"crowded": crowded}))
    order = PlayOrder(suite="crowded", index=0, number=0, placement_seed=1)
    answer = player.do(order.model_dump_json())
    assert (answer.success, answer.hopeless) == (False, True)
    assert "crowd.bddl: there is no room for all objects" in str(answer.error)


def test_a_draw_without_room_costs_one_episode_and_not_the_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from robosuite.utils.errors import RandomizationError

    from vlarl_env.child import _Tasks
    from vlarl_env.wire import Kind

    simulators = _Tasks(EnvConfig(profile="fast", render_size=64))
    reach = rollout_pb2.Task(suite="reach", index=0)
    reset = env_pb2.ResetEpisode(task=reach, placement_seed=3)
    asked = env_pb2.InteractRequest(reset=reset)
    assert simulators.answer(asked).kind is Kind.ANSWER

    def full(*_: object) -> None:
        raise RandomizationError("no room")

    assert simulators._running is not None
    scene = simulators._running._scene
    with monkeypatch.context() as unlucky:
        unlucky.setattr(scene.problem.placement_initializer, "sample", full)
        refused = simulators.answer(asked)
    assert refused.kind is Kind.REFUSED
    assert b"there is no room for all objects" in refused.payload
    assert simulators.answer(asked).kind is Kind.ANSWER


@pytest.fixture
def outdated(tmp_path: Path) -> Path:
    """A suite of one task whose states were drawn before a second bowl came into its scene."""
    from vlarl_env.simulators.libero.init_states import draw
    from vlarl_env.simulators.libero.suites import SHIPPED_SUITES

    (reach,) = SHIPPED_SUITES["reach"].glob("*.bddl")
    scene = tmp_path / "two_bowls.bddl"
    text = reach.read_text("utf-8")
    scene.write_text(text, "utf-8")
    draw(scene, count=2)
    region = "main_table_bowl_region)"
    text = text.replace("akita_black_bowl_1 -", "akita_black_bowl_1 akita_black_bowl_2 -")
    text = text.replace(region, f"{region} (On akita_black_bowl_2 {region}")
    scene.write_text(text.replace("-0.065 -0.075 0.065 0.075", "-0.3 -0.3 0.3 0.3"), "utf-8")
    return tmp_path


def test_states_of_another_scene_are_refused_and_the_simulator_goes_on(outdated: Path) -> None:
    from vlarl_env.child import _Tasks
    from vlarl_env.wire import Kind
    from vlarl_jobs.demonstrations.messages import PlayOrder, Settings
    from vlarl_jobs.demonstrations.player import Player

    config = EnvConfig(
        bddl_directories={"mine": outdated}, profile="fast", render_size=32, settle_steps=0
    )
    task = rollout_pb2.Task(suite="mine", index=0)
    tasks = _Tasks(config)
    stale = env_pb2.InteractRequest(reset=env_pb2.ResetEpisode(task=task, init_state=1))
    sentence = f"{outdated / 'two_bowls.init.npz'}: its states have "
    for _ in range(2):
        answer = tasks.answer(stale)
        assert answer.kind is Kind.REFUSED
        assert answer.payload.decode().startswith(sentence)
    drawn = env_pb2.InteractRequest(reset=env_pb2.ResetEpisode(task=task, placement_seed=1))
    assert tasks.answer(drawn).kind is Kind.ANSWER

    player = Player(Settings(job="play", profile="fast", suites={"mine": outdated}))
    order = PlayOrder(suite="mine", index=0, number=0, init_state=1)
    played = player.do(order.model_dump_json())
    assert (played.success, played.hopeless) == (False, True)
    assert str(played.error).startswith(sentence)
