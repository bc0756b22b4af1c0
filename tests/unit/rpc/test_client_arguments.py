"""What the clients refuse before they send anything: a ValueError that names the argument."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlarl.clients.env import EnvClient, EnvError, Episode
from vlarl.clients.policy import AsyncPolicyClient, PolicyClient, PolicyError
from vlarl.env.v1 import env_pb2

FRAME = np.zeros((4, 4, 3), np.uint8)
NOBODY = "127.0.0.1:1"
HALF = "\ud800"
"""Half a character."""


class Tracked:
    """An array of a library that hands out no numbers, as torch where gradients are tracked."""

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.\nUse tensor.detach()")


NO_TEXT = [None, 3, 2.5, True, b"text", ["text"], np.str_, HALF, f"a{HALF}b"]
NO_NUMBER = [None, "0.5", b"1", [1.0], 1j, True, np.bool_(True), FRAME, 10**400, float("nan")]
NO_WHOLE_NUMBER = [
    *("7", b"7", 7.0, 2.5, float("nan"), float("inf"), 1j, True, np.bool_(False)),
    *(np.float32(3), np.zeros(2, int), [7], FRAME, -1, 2**64, 10**5000, np.int64(-1)),
]
NO_FLAG = ["yes", 1, 0, 0.0, b"", np.int64(1), FRAME]
NO_PATH = [3, 2.5, True, b"file", ["file"], "", "a\0b"]
NO_IMAGE = [
    *(None, "frame.png", 3, [1, 2], [[[0, 0, 0]]], True, b"", bytearray(), memoryview(b"")),
    *(FRAME.astype(np.float32), FRAME.astype(np.int64), FRAME.astype(bool), FRAME.astype(object)),
    *(
        FRAME[..., 0],
        FRAME[..., :2],
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ),
    *(np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0, 3), np.uint8), np.uint8(3)),
    Tracked(),
]
NO_ACTION = [
    *(None, "1234567", b"1234567", 3, True, [0.0] * 6, [0.0] * 8, [], [None] * 7),
    *(["0"] * 7, [True] * 7, [0.0] * 6 + [float("nan")], [0.0] * 6 + [float("inf")]),
    *([[0.0] * 6] * 7, [[[0.0] * 7]], [[]], np.zeros((0, 7)), [[0.0] * 7, [float("nan")] * 7]),
    *([1e39] + [0.0] * 6, [[0.0], [0.0, 1.0]], [10**400] + [0] * 6, [1j] * 7, np.zeros((7, 1))),
    np.array(["x"] * 7),
    Tracked(),
]
NO_PROPRIO = [
    *("1234567", b"1234567", 3, True, [[0.0] * 8], [None] * 8, ["0"] * 8, [True] * 8),
    *([float("nan")] * 8, [float("inf")], [1e39], [10**400], [1j], np.zeros((8, 1))),
    Tracked(),
]
POLICY_ARGUMENTS: dict[str, list[Any]] = {
    "image": NO_IMAGE,
    "instruction": [*NO_TEXT, "", " \n"],
    "images": [
        *("wrist", b"frame", 3, True, [FRAME], FRAME, [("wrist", FRAME)]),
        *({"wrist": image} for image in NO_IMAGE),
        *({name: FRAME} for name in (None, 3, 2.5, True, b"wrist", HALF)),
    ],
    "proprio": NO_PROPRIO,
    "temperature": [*NO_NUMBER, -1.0, float("inf"), 1e39, 1e-50],
    "seed": NO_WHOLE_NUMBER,
    "unnorm_key": NO_TEXT[1:],
    "center_crop": NO_FLAG,
    "timeout_seconds": [*NO_NUMBER[1:], float("inf"), 1e10],
}
"""Of `predict`, each with what can't be sent."""
CHANNEL_ARGUMENTS: dict[str, list[Any]] = {
    "address": [*NO_TEXT, "", " ", ","],
    "token": [*NO_TEXT[1:], "two\nlines", "caf\u00e9"],
    "token_file": NO_PATH,
    "tls_ca": NO_PATH,
    "tls_certificate": NO_PATH,
    "tls_key": NO_PATH,
    "timeout_seconds": [*NO_NUMBER, 0, -1.0, float("inf"), 1e10],
}
EPISODE_ARGUMENTS: dict[str, list[Any]] = {
    "suite": NO_TEXT,
    "task": [None, *NO_WHOLE_NUMBER, 2**32],
    "init_state": [*NO_WHOLE_NUMBER, 2**32],
    "max_control_steps": [None, *NO_WHOLE_NUMBER, 2**32],
    "cameras": [None, "agentview", b"agentview", 3, [None], [3], [HALF], [b"agentview"], FRAME],
}


def cases(arguments: dict[str, list[Any]]) -> Any:  # noqa: ANN401
    """A test's parameters: each argument with each of its values."""
    pairs = [(name, value) for name, values in arguments.items() for value in values]
    names = [f"{name}-{index}" for index, (name, _) in enumerate(pairs)]
    return pytest.mark.parametrize(("name", "value"), pairs, ids=names)


@pytest.fixture(scope="module")
def policy() -> Iterator[PolicyClient]:
    """A client of nobody: a call that is sent fails with PolicyError, not with ValueError."""
    with PolicyClient(NOBODY, timeout_seconds=0.05) as opened:
        yield opened


@pytest.fixture(scope="module")
def env() -> Iterator[EnvClient]:
    with EnvClient(NOBODY, timeout_seconds=0.05) as opened:
        yield opened


def refused(name: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=name.replace("[", r"\[")) as found:
        call()
    # UnicodeError is a ValueError, too, and says nothing of arguments.
    assert not isinstance(found.value, UnicodeError)
    assert "\n" not in str(found.value)


@cases(POLICY_ARGUMENTS)
def test_a_policys_arguments(policy: PolicyClient, name: str, value: Any) -> None:  # noqa: ANN401
    arguments = {"image": FRAME, "instruction": "lift the bowl", name: value}
    refused(name, lambda: policy.predict(**arguments))


@cases(POLICY_ARGUMENTS)
def test_those_of_the_asynchronous_client(name: str, value: Any) -> None:  # noqa: ANN401
    arguments = {"image": FRAME, "instruction": "lift the bowl", name: value}

    async def ask() -> None:
        async with AsyncPolicyClient(NOBODY, timeout_seconds=0.05) as client:
            await client.predict(**arguments)

    refused(name, lambda: asyncio.run(ask()))


@cases({name: POLICY_ARGUMENTS[name] for name in ("image", "instruction")})
def test_one_of_a_batch_is_named_with_its_place(
    policy: PolicyClient,
    name: str,
    value: Any,  # noqa: ANN401
) -> None:
    wrong = {"image": FRAME, "instruction": "lift the bowl", name: value}
    batch = [(FRAME, "lift the bowl"), (wrong["image"], wrong["instruction"])]
    refused(f"observations[1]: {name}", lambda: policy.predict_batch(batch))


@cases({"seeds": NO_WHOLE_NUMBER})
def test_seeds_of_a_batch(policy: PolicyClient, name: str, value: Any) -> None:  # noqa: ANN401
    batch = [(FRAME, "a"), (FRAME, "b")]
    refused(f"{name}[1]", lambda: policy.predict_batch(batch, seeds=[1, value]))


@cases(
    {
        "observations": [None, 3, "text", b"bytes", [], [FRAME], [None], [(FRAME,)], ["ab"], FRAME],
        "seeds": ["12", 12, [1, 2, 3], [1], []],
    }
)
def test_batches(policy: PolicyClient, name: str, value: Any) -> None:  # noqa: ANN401
    arguments = {"observations": [(FRAME, "a"), (FRAME, "b")], name: value}
    refused(name, lambda: policy.predict_batch(**arguments))


@pytest.mark.parametrize("client", [PolicyClient, EnvClient, AsyncPolicyClient])
@cases(CHANNEL_ARGUMENTS)
def test_a_channels_arguments(client: type[Any], name: str, value: Any) -> None:  # noqa: ANN401
    async def opened() -> None:
        client(**{"address": NOBODY, name: value})

    refused(name if name != "token" else "token", lambda: asyncio.run(opened()))


@cases(EPISODE_ARGUMENTS)
def test_an_episodes_arguments(env: EnvClient, name: str, value: Any) -> None:  # noqa: ANN401
    arguments = {"suite": "reach", "init_state": 0, name: value}
    refused(name, lambda: env.episode(**arguments))


@cases({"placement_seed": NO_WHOLE_NUMBER})
def test_a_placements_seed(env: EnvClient, name: str, value: Any) -> None:  # noqa: ANN401
    refused(name, lambda: env.episode("reach", placement_seed=value))


@cases({"suite": NO_TEXT})
def test_a_suite(env: EnvClient, name: str, value: Any) -> None:  # noqa: ANN401
    refused(name, lambda: env.tasks(value))


class _NobodysEpisodes:
    """A stub whose server begins an episode and then answers each step alike."""

    def Interact(self, requests: Iterator[env_pb2.InteractRequest]) -> Iterator[Any]:
        for _ in requests:
            yield env_pb2.InteractResponse()


@cases({"action": NO_ACTION, "repeat": [None, *NO_WHOLE_NUMBER, 2**32]})
def test_a_step_that_can_not_be_sent_leaves_the_episode_as_it_was(
    name: str,
    value: Any,  # noqa: ANN401
) -> None:
    episode = Episode(_NobodysEpisodes(), NOBODY, env_pb2.ResetEpisode())  # type: ignore[arg-type]
    refused(name, lambda: episode.step(**{"action": np.zeros(7), name: value}))
    episode.step(np.zeros(7))
    episode.close()


def test_every_argument_is_tried() -> None:
    """A new one comes with what can't be sent for it."""
    for function, tried in (
        (PolicyClient.predict, POLICY_ARGUMENTS),
        (AsyncPolicyClient.predict, POLICY_ARGUMENTS),
        (PolicyClient.__init__, CHANNEL_ARGUMENTS),
        (AsyncPolicyClient.__init__, CHANNEL_ARGUMENTS),
        (EnvClient.__init__, CHANNEL_ARGUMENTS),
        (EnvClient.episode, {**EPISODE_ARGUMENTS, "placement_seed": NO_WHOLE_NUMBER}),
    ):
        assert set(inspect.signature(function).parameters) - {"self"} == set(tried)


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": np.uint64(2**64 - 1), "temperature": np.float32(1)},
        {"seed": np.int8(3), "temperature": 1, "center_crop": np.bool_(True)},
        {"temperature": np.float64(0.5), "timeout_seconds": np.float32(0.05)},
        {"instruction": np.str_("lift the bowl"), "unnorm_key": ""},
        {"image": memoryview(FRAME), "timeout_seconds": -1},
        {"image": FRAME[::-1, ::2]},
        {"images": {"wrist": FRAME, "left": b"frame"}, "proprio": np.zeros(8, np.float16)},
        {"images": {}, "proprio": [0, 1, 2]},
    ],
)
def test_what_can_be_sent_is(policy: PolicyClient, arguments: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        policy.predict(**{"image": FRAME, "instruction": "lift the bowl", **arguments})


@pytest.mark.parametrize(
    "action",
    [
        *([0] * 7, (0.5,) * 7, np.zeros(7, np.float16), np.arange(7), range(7)),
        *([[0] * 7], [(0.5,) * 7] * 3, np.zeros((8, 7))),
    ],
)
def test_what_an_arm_can_do_is_sent(action: Any) -> None:  # noqa: ANN401
    episode = Episode(_NobodysEpisodes(), NOBODY, env_pb2.ResetEpisode())  # type: ignore[arg-type]
    episode.step(action, repeat=np.int64(2))
    episode.close()


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.complex_numbers(),
    st.lists(st.floats(), max_size=8),
    st.sampled_from([HALF, FRAME, object(), 10**400, -(10**400), np.float32("nan"), {}, set()]),
)


@given(name=st.sampled_from(sorted(POLICY_ARGUMENTS)), value=ANYTHING)
def test_whatever_is_given_is_sent_or_refused_by_name(name: str, value: Any) -> None:  # noqa: ANN401
    arguments = {"image": FRAME, "instruction": "lift the bowl", "timeout_seconds": 0.001}
    with PolicyClient(NOBODY) as client:
        try:
            client.predict(**(arguments | {name: value}))
        except ValueError as error:
            assert name in str(error)  # noqa: PT017 - it may be sent as well
        except PolicyError:
            pass


@given(name=st.sampled_from(sorted(EPISODE_ARGUMENTS)), value=ANYTHING)
def test_so_it_is_with_episodes(name: str, value: Any) -> None:  # noqa: ANN401
    with EnvClient(NOBODY, timeout_seconds=0.001) as client:
        try:
            client.episode(**({"suite": "reach", "init_state": 0} | {name: value}))
        except ValueError as error:
            assert name in str(error)  # noqa: PT017 - it may be sent as well
        except EnvError:
            pass
