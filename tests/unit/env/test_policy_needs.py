"""What a policy reads, against what the configuration shows it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vlarl.config import EnvConfig, RunConfig, TasksConfig
from vlarl.errors import ConfigError
from vlarl.models.needs import PolicyNeeds, check_needs, check_recordable
from vlarl.policy.v1 import policy_pb2

TWO = ("agentview", "robot0_eye_in_hand")
CHUNKED = PolicyNeeds(cameras=TWO, proprio=8, chunk=8)


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
    "limit": (CHUNKED, {}, {"max_actions": 7}, "an episode has at most 7: raise tasks.max_actions"),
    "arm": (PolicyNeeds(proprio=14), {}, {}, "reads 14 numbers of proprioception"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_said_before_anything_starts(case: str) -> None:
    needs, env, tasks, said = MISFITS[case]
    config = RunConfig(
        env=EnvConfig.model_validate(env), tasks=TasksConfig(suite="libero_goal", **tasks)
    )
    with pytest.raises(ConfigError) as refused:
        check_needs(config, needs)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_fits_passes() -> None:
    check_needs(RunConfig(), PolicyNeeds())
    tasks = TasksConfig(suite="libero_goal", max_actions=4)
    check_needs(RunConfig(tasks=tasks, env=EnvConfig(replan_after=4)), CHUNKED)
    # The scenes of a suite of one's own may have other cameras: the simulator knows.
    check_needs(RunConfig(tasks=TasksConfig(suite="mine")), PolicyNeeds(("canonical_agentview",)))


@pytest.mark.parametrize("cameras", [[], ["agentview", "agentview"]])
def test_cameras_are_named_once(cameras: list[str]) -> None:
    with pytest.raises(ValidationError, match="name at least one, each once, or leave them out"):
        EnvConfig(cameras=cameras)


def test_chunks_are_no_dataset() -> None:
    check_recordable(PolicyNeeds(cameras=TWO), "--record")
    with pytest.raises(ConfigError, match="answers 8 actions to each: leave --record out"):
        check_recordable(CHUNKED, "--record")
