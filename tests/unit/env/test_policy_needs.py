"""What a policy reads, against what the configuration shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from vlarl.config import (
    EnvConfig,
    OutcomeRewardConfig,
    ProcessRewardConfig,
    RunConfig,
    TasksConfig,
    TrainerConfig,
)
from vlarl.config.libero import LIBERO_SUITES
from vlarl.config.suites import SHIPPED_NAMES, scene_cameras
from vlarl.env.v1 import env_pb2
from vlarl.errors import ConfigError
from vlarl.models.needs import (
    PolicyNeeds,
    check_mini_batch,
    check_needs,
    check_recordable,
    check_reward_form,
)
from vlarl.policy.v1 import policy_pb2

TWO = ("agentview", "robot0_eye_in_hand")
CHUNKED = PolicyNeeds(cameras=TWO, proprio=8, chunk=8)
REACH = env_pb2.TaskDescription(name="reach", max_control_steps=60)


def test_a_server_that_does_not_say_sees_one_camera() -> None:
    assert PolicyNeeds.of_server(policy_pb2.GetPolicyResponse(action_dim=7)) == PolicyNeeds(
        cameras=("agentview",), proprio=0, chunk=1
    )
    described = policy_pb2.GetPolicyResponse(chunk=8, cameras=TWO, proprio=8)
    assert PolicyNeeds.of_server(described) == CHUNKED


def test_cameras_are_the_policys_unless_others_are_named() -> None:
    assert CHUNKED.shown(EnvConfig()) == TWO
    others = ("frontview", "robot0_eye_in_hand")
    assert CHUNKED.shown(EnvConfig(cameras=others)) == others
    # Runs of before named the one that was shown, and others that weren't.
    assert PolicyNeeds().shown(EnvConfig(cameras=TWO)) == ("agentview",)


def test_all_of_a_chunk_is_executed_unless_less_is_asked_for() -> None:
    assert CHUNKED.executed(EnvConfig()) == 8
    assert CHUNKED.executed(EnvConfig(replan_after=3), limit=3) == 3
    assert PolicyNeeds().executed(EnvConfig(replan_after=1), limit=1) == 1


MISFITS = {
    "fewer": (
        CHUNKED,
        {"cameras": ["agentview"]},
        {},
        "names 1 (agentview), and the policy sees 2",
    ),
    "unknown": (CHUNKED, {"cameras": ("agentview", "behind")}, {}, "have no camera 'behind'"),
    "its own": (PolicyNeeds(("wrist",)), {}, {}, "the policy's cameras: the scenes of libero_goal"),
    "replan": (CHUNKED, {"replan_after": 9}, {}, "an answer of the policy has 8 actions"),
    "replan one": (PolicyNeeds(), {"replan_after": 2}, {}, "an answer of the policy has 1 action:"),
    "limit": (
        CHUNKED,
        {},
        {"max_actions": 7},
        "an episode has at most 7: set tasks.max_actions to at least 8, or env.replan_after to at",
    ),
    "plain table": (CHUNKED, {"cameras": ("agentview", "paperview")}, {}, "have no camera 'paper"),
    "own": (PolicyNeeds(("wrist",)), {}, {"suite": "reach"}, "the scenes of reach have no camera"),
    "steps": (PolicyNeeds(chunk=64), {"action_repeat": 4}, {"suite": "reach"}, "has at most 15:"),
    "arm": (PolicyNeeds(proprio=14), {}, {}, "reads 14 numbers of proprioception"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_said_before_anything_starts(case: str) -> None:
    needs, env, tasks, said = MISFITS[case]
    tasks = {"suite": "libero_goal"} | tasks
    config = RunConfig.model_validate({"env": env, "tasks": tasks})
    with pytest.raises(ConfigError) as refused:
        check_needs(config, needs, [REACH] if tasks["suite"] == "reach" else ())
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_fits_passes() -> None:
    check_needs(RunConfig(), PolicyNeeds())
    tasks = TasksConfig(suite="libero_goal", max_actions=4)
    check_needs(RunConfig(tasks=tasks, env=EnvConfig(replan_after=4)), CHUNKED)
    # The limit of a suite that isn't LIBERO's is known where simulators were asked.
    reach = RunConfig(tasks=TasksConfig(suite="reach"), env=EnvConfig(action_repeat=4))
    check_needs(reach, PolicyNeeds(chunk=15), [REACH])
    check_needs(reach, PolicyNeeds(chunk=64))


def test_rooms_have_a_camera_more() -> None:
    """As the scenes of an installed LIBERO have them, built one of each kind."""
    rooms = {one for one in LIBERO_SUITES if one.startswith(("libero_10", "libero_90"))}
    assert len(rooms) == 6
    for suite in (*LIBERO_SUITES, *SHIPPED_NAMES):
        known = scene_cameras(EnvConfig(), suite)
        assert ("paperview" in known) == (suite in rooms)
        assert len(known) == 7 + (suite in rooms)


def test_scenes_of_ones_own_have_what_their_files_name(tmp_path: Path) -> None:
    for number, problem in enumerate(("LIBERO_Coffee_Table", "LIBERO_Kitchen_Tabletop")):
        text = f"(define ; (problem a)\n (problem {problem}_Manipulation))"
        (tmp_path / f"{number}.bddl").write_text(text)
    env = EnvConfig(bddl_directories={"mine": tmp_path, "away": tmp_path / "away"})
    assert scene_cameras(env, "mine", [0])[7:] == ("canonical_agentview",)
    assert scene_cameras(env, "mine", [1])[7:] == ("paperview",)
    assert scene_cameras(env, "mine")[7:] == (), "the two have none in common"
    # A trainer's machine may lack the folder.
    assert scene_cameras(env, "away")[7:] == ("canonical_agentview", "paperview")
    config = RunConfig(env=env, tasks=TasksConfig(suite="mine", indices=(1,)))
    check_needs(config, PolicyNeeds(("paperview",)))
    with pytest.raises(ConfigError, match="the scenes of mine have no camera 'canonical_agentv"):
        check_needs(config, PolicyNeeds(("canonical_agentview",)))


def test_a_mini_batch_counts_answers() -> None:
    """16 episodes of 60 steps, 4 an action, are 240 actions, and 32 answers of 8."""

    def run(mini_batch: int, **env: object) -> RunConfig:
        grpo = {"algorithm": "grpo", "grpo": {"mini_batch": mini_batch, "micro_batch": 1}}
        return RunConfig(
            tasks=TasksConfig(suite="reach"),
            env=EnvConfig(action_repeat=4, **env),
            trainer=TrainerConfig(episodes_per_iteration=16, **grpo),
        )

    check_mini_batch(run(32), CHUNKED, [REACH])
    check_mini_batch(run(33), CHUNKED)  # nobody has said how long an episode may be
    check_mini_batch(run(80, replan_after=3), CHUNKED, [REACH])
    check_mini_batch(run(240), PolicyNeeds(), [REACH])
    for config, needs, least in (
        (run(33), CHUNKED, "15 actions, 8 of each answer, are 32: lower it, or order"),
        (run(81, replan_after=3), CHUNKED, "15 actions, 3 of each answer, are 80"),
        (run(241), PolicyNeeds(), "15 actions, 1 of each answer, are 240"),
    ):
        with pytest.raises(ConfigError, match=rf"mini_batch is \d+ answers .* at most {least}"):
            check_mini_batch(config, needs, [REACH])


def test_actions_of_a_chunk_are_not_scored_one_by_one() -> None:
    additive, potential = (
        ProcessRewardConfig.model_validate({"model": "rprm", "checkpoint": "judge", "form": form})
        for form in ("additive", "potential")
    )
    check_reward_form(additive, PolicyNeeds())
    check_reward_form(potential, CHUNKED)
    check_reward_form(OutcomeRewardConfig(), CHUNKED)
    with pytest.raises(ConfigError, match=r'answers 8 at once: set reward\.form = "potential"'):
        check_reward_form(additive, CHUNKED)


@pytest.mark.parametrize("cameras", [[], ["agentview", "agentview"]])
def test_cameras_are_named_once(cameras: list[str]) -> None:
    with pytest.raises(ValidationError, match="name at least one, each once, or leave them out"):
        EnvConfig(cameras=cameras)


def test_chunks_are_no_dataset() -> None:
    check_recordable(PolicyNeeds(cameras=TWO), "--record")
    with pytest.raises(ConfigError, match="answers 8 actions to each: leave --record out"):
        check_recordable(CHUNKED, "--record")
