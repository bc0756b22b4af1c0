"""JavaScript, `buf curl` as docs/clients.md has it, and the control loop, against a real server."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from PIL import Image

from tests.integration.rpc.programs import ROOT, run_program
from tests.integration.rpc.servicers import Serve, Served
from vlarl import AsyncPolicyClient
from vlarl.env.v1 import env_pb2, env_pb2_grpc
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2
from vlarl.rpc.channel import open_channel

ALICE = "alice"
NPM_SECONDS = 45
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:1")
"""Where nobody listens."""
WRIST = "robot0_eye_in_hand"
ONE_STEP = policy_pb2.GetPolicyResponse(family="openvla", chunk=1, cameras=["agentview"])
CHUNKED = policy_pb2.GetPolicyResponse(
    family="openvla_oft", chunk=2, cameras=["agentview", WRIST], proprio=8
)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "frame.png"
    Image.new("RGB", (8, 6), (200, 30, 90)).save(path)
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, Path]:
    """Token files of a server, the second one for its clients."""
    own, clients = tmp_path / "token", tmp_path / "clients"
    own.write_text("secret\n")
    clients.write_text(f"{ALICE}\n")
    return {"token_file": own, "client_token_file": clients}


@pytest.fixture
async def javascript(tmp_path: Path) -> Path:
    """The JavaScript client's folder with its packages, in a copy of what it needs of the tree."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm aren't installed")
    folder = tmp_path / "tree/examples/javascript"
    ignore = shutil.ignore_patterns("node_modules")
    shutil.copytree(ROOT / "examples/javascript", folder, ignore=ignore)
    shutil.copytree(ROOT / "protos", tmp_path / "tree/protos")
    install = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
    try:
        code, _, errors = await run_program(*install, folder=folder, seconds=NPM_SECONDS)
    except TimeoutError:
        pytest.skip(f"npm's packages didn't come within {NPM_SECONDS} s")
    # A lock file that doesn't fit is our fault, a registry that isn't there is nobody's.
    assert "EUSAGE" not in errors
    assert "EINTEGRITY" not in errors
    if code != 0:
        pytest.skip(f"npm's packages can't be had: {errors.strip().splitlines()[0]}")
    return folder


async def test_javascript(
    serve: Serve, javascript: Path, picture: Path, tokens: dict[str, Path]
) -> None:
    served = await serve(**tokens)
    served.policy.described = ONE_STEP
    served.policy.unavailable = 1
    asked = ("--image", picture, "--instruction", "lift the bowl", "--seed", "9")
    ask = ("node", "act.js", "--address", served.address, *asked, "--temperature", "0.5")
    code, output, errors = await run_program(
        *ask, "--token-file", tokens["client_token_file"], folder=javascript, **PROXIES
    )
    assert (code, errors) == (0, "")
    digest = hashlib.sha256(picture.read_bytes()).digest()
    assert json.loads(output) == {
        "tokenIds": [32_000 - byte for byte in digest[:7]],
        "logprobs": [-0.5] * 7,
        "values": [9] * 7,
        "policyVersion": "3",
    }
    assert served.policy.calls == 2  # the first one was refused as UNAVAILABLE
    assert served.policy.metadata["authorization"] == f"Bearer {ALICE}"
    code, output, errors = await run_program(*ask, folder=javascript)
    assert (code, output) == (1, "")
    said = f"error: {served.address}: a bearer token is needed (UNAUTHENTICATED)\n"
    assert errors == said
    await javascript_chunk(served, javascript, (*ask, "--token-file", tokens["client_token_file"]))


async def javascript_chunk(served: Served, folder: Path, ask: tuple[str | Path, ...]) -> None:
    """A policy that sees two cameras, reads the arm and answers two steps."""
    served.policy.described, served.policy.horizon = CHUNKED, 2
    code, output, errors = await run_program(*ask, folder=folder)
    assert (code, output) == (1, "")
    needs = f"--camera {WRIST}=FILE, --proprio=NUMBER,... with 8 numbers"
    assert errors == f"error: {served.address}: the policy needs {needs}\n"
    wrist = folder / "wrist=left=.png"
    Image.new("RGB", (8, 6), (1, 2, 3)).save(wrist)
    more = ("--camera", f"{WRIST}={wrist}", "--proprio=-0.5,1,2,3,4,5,6,7")
    code, output, errors = await run_program(*ask, *more, folder=folder)
    assert (code, errors) == (0, "")
    assert json.loads(output)["values"] == [[9] * 7, [10] * 7]
    seen = served.policy.observations[-1]
    assert [(one.camera, one.image) for one in seen.images] == [(WRIST, wrist.read_bytes())]
    assert list(seen.proprio) == [-0.5, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (("--proprio", "-0.1,0"), 2, r"error: .*'--proprio' .* use '--proprio=-XYZ'\.\n"),
        (("--nothing",), 2, r"error: Unknown option '--nothing'.*\n"),
        (("--image", ""), 2, r"error: --image and --instruction are needed\n"),
        (("--camera", "wrist.png"), 1, r"error: .*: --camera takes NAME=FILE, not wrist\.png\n"),
        (("--token-file", "none"), 1, r"error: .*: ENOENT: .* 'none'\n"),
    ],
)
async def test_javascript_says_in_a_line_what_is_wrong_with_its_arguments(
    javascript: Path, picture: Path, given: tuple[str, ...], code: int, said: str
) -> None:
    ask = ("node", "act.js", "--address", "127.0.0.1:1", "--image", picture, "--instruction", "go")
    ended, output, errors = await run_program(*ask, *given, folder=javascript)
    assert (ended, output) == (code, "")
    assert re.fullmatch(said, errors), errors


async def test_the_command_shows_a_chunk_step_by_step(serve: Serve, picture: Path) -> None:
    served = await serve()
    served.policy.horizon = 2
    ask = (sys.executable, "-m", "vlarl", "act", "--address", served.address, "--seed", "9")
    more = ("--camera", f"{WRIST}={picture}", "--proprio", "0.5,-1")
    asked = ("--image", picture, "--instruction", "lift the bowl", *more)
    code, output, errors = await run_program(*ask, *asked)
    assert (code, errors) == (0, "")
    shown = output.splitlines()[-2:]
    assert shown == [
        "action    " + " ".join(["+9.0000"] * 7),
        " " * 10 + " ".join(["+10.0000"] * 7),
    ]
    (seen,) = served.policy.observations
    assert [(one.camera, one.image) for one in seen.images] == [(WRIST, picture.read_bytes())]
    assert list(seen.proprio) == [0.5, -1.0]


@pytest.mark.parametrize("horizon", [0, 2])
async def test_the_stream_as_documented(serve: Serve, horizon: int) -> None:
    """With actions of one control step, and with chunks."""
    page = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(async with open_channel\(.*?)```", page, re.DOTALL)
    served = await serve()
    served.policy.horizon, served.env.last_step = horizon, 4
    code = code.replace("HOST:50052", served.address).replace("token=token", "")
    code = code.replace("state.instruction", "'lift'")  # this server gives none
    names = {"open_channel": open_channel, "rollout_pb2": rollout_pb2, "env_pb2": env_pb2}
    async with AsyncPolicyClient(served.address) as policy:
        known: dict[str, Any] = {**names, "env_pb2_grpc": env_pb2_grpc, "policy": policy}
        exec(f"async def episode():\n{indent(code, '    ')}", known)  # noqa: S102 - our own page
        await known["episode"]()
    of_step = [[0.0] * 7 + [1.0] * 7] * 2 if horizon else [[0.0] * 7] * 4
    assert served.env.actions == of_step
    assert served.policy.calls == len(of_step)


def documented_calls() -> list[str]:
    """Every `buf curl` of the page, with its continued lines."""
    page = (ROOT / "docs/clients.md").read_text()
    return re.findall(r"^buf curl (?:.*\\\n)*.*$", page, flags=re.MULTILINE)


@pytest.mark.skipif(
    not Path(sys.executable).with_name("buf").exists(), reason="buf is in .venv, not in .venv-sim"
)
async def test_buf_curl_as_documented(serve: Serve, picture: Path, tokens: dict[str, Path]) -> None:
    served = await serve(reflection=True, **tokens)
    calls = documented_calls()
    answered = []
    for call in calls:
        here = re.sub(r"127\.0\.0\.1:5005[12]", served.address, call)
        here = here.replace("frame.png", str(picture))
        code, output, errors = await run_program("bash", "-c", here, TOKEN=ALICE)
        method = call.rpartition("/")[2]
        if method == "GetPolicy":  # the token was good, this server just hasn't got the method
            assert "GetPolicy isn't offered here" in errors
            continue
        assert (code, errors) == (0, "")
        answered.append((method, output))
    assert [method for method, _ in answered] == ["PredictActions", "ListTasks", "Interact"]
    (_, predicted), (_, listed), (_, played) = answered
    digest = hashlib.sha256(picture.read_bytes()).digest()
    tokens_asked = [32_000 - byte for byte in digest[:7]]
    assert json.loads(predicted)["actions"][0]["tokenIds"] == tokens_asked
    assert json.loads(listed)["tasks"][0]["name"] == "reach"
    assert '"controlSteps": 1' in played
    assert len(calls) == 5


def control_loop(address: str, *options: str | Path) -> tuple[str | Path, ...]:
    script = ROOT / "examples/control_loop.py"
    return (sys.executable, script, "--address", address, "--instruction", "lift", *options)


async def test_the_control_loop_keeps_its_rate(
    serve: Serve, tmp_path: Path, tokens: dict[str, Path]
) -> None:
    served = await serve(**tokens)
    served.policy.described = ONE_STEP
    folder = tmp_path / "camera"
    folder.mkdir()
    for number, colour in enumerate(("red", "green")):
        Image.new("RGB", (16, 16), colour).save(folder / f"{number}.png")
    client = ("--token-file", tokens["client_token_file"], "--images", folder)
    code, output, errors = await run_program(
        *control_loop(served.address, "--rate", "4", "--steps", "3", *client)
    )
    assert (code, errors) == (0, "")
    assert re.search(r"^policy +(\d+\.\d +){3}\d+\.\d$", output, re.MULTILINE)
    assert re.search(r"^left of 250 ms at p95: -?\d+\.\d ms$", output, re.MULTILINE)
    assert re.search(r"^deadlines missed: \d of 3 \(", output, re.MULTILINE)
    seen = [Image.open(io.BytesIO(image)) for image in served.policy.images]
    assert [image.format for image in seen] == ["JPEG"] * 4
    reds = [image.getpixel((8, 8))[0] > 200 for image in seen]  # type: ignore[index]
    assert reds == [True, False, True, False]


async def test_the_control_loop_plays_chunks(serve: Serve) -> None:
    served = await serve()
    served.policy.described, served.policy.horizon = CHUNKED, 2
    options = ("--rate", "10", "--steps", "5", "--replan-after", "0")
    code, output, errors = await run_program(*control_loop(served.address, *options))
    assert (code, errors) == (0, "")
    assert re.search(r"^deadlines missed: \d of 5 \(", output, re.MULTILINE)
    missed = int(re.findall(r"missed: (\d) of", output)[0])
    # One before it begins, and ten to find the rate that could be kept.
    assert served.policy.calls >= 1 + 3 + 10 * bool(missed)
    if not missed:
        assert served.policy.calls == 1 + 3
    for seen in served.policy.observations:
        assert [one.camera for one in seen.images] == [WRIST]
        assert list(seen.proprio) == [0.0] * 8


async def test_the_control_loop_counts_what_comes_too_late(serve: Serve) -> None:
    served = await serve()
    served.policy.described = ONE_STEP
    options = ("--rate", "2000", "--steps", "20")
    code, output, errors = await run_program(*control_loop(served.address, *options))
    assert (code, errors) == (0, "")
    assert "deadlines missed: 20 of 20 (100.0 %)" in output
    kept = re.search(r"^without haste a step .* ms: --rate (\S+) is kept$", output, re.MULTILINE)
    assert kept is not None
    assert 0 < float(kept[1]) < 2000


async def test_the_rate_that_could_be_kept_is_one_that_is(serve: Serve) -> None:
    served = await serve()
    served.policy.described = ONE_STEP
    served.policy.seconds = 0.2  # longer than a period at the rate asked for
    code, output, errors = await run_program(
        *control_loop(served.address, "--rate", "10", "--steps", "3")
    )
    assert (code, errors) == (0, "")
    assert "deadlines missed: 3 of 3 (100.0 %)" in output
    kept = re.search(r"--rate (\S+) is kept", output)
    assert kept is not None
    assert float(kept[1]) <= 5


async def test_the_control_loop_says_what_can_not_work(
    serve: Serve, tokens: dict[str, Path]
) -> None:
    served = await serve(**tokens)
    code, output, errors = await run_program(*control_loop(served.address))
    assert (code, output) == (1, "")
    assert errors == f"error: {served.address}: a bearer token is needed (UNAUTHENTICATED)\n"
