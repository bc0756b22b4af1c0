"""One episode: a policy server moves the arm in a simulator of an env server, both elsewhere.

    vlarl serve policy --checkpoint policies/reach --config configs/reach.toml
    vlarl serve env --no-queue --config configs/reach.toml       # from .venv-sim
    python examples/rollout.py --suite reach --placement-seed 3 --max-control-steps 24

Needs `pip install .` and nothing else. The film is a GIF in the simulator's own time. A policy that
answers several control steps at once is asked when they have been played, or sooner
(`--replan-after`).
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from PIL import Image

from vlarl import ChunkedPolicy, EnvClient, EnvError, Observation, PolicyClient, PolicyError
from vlarl.env.v1.env_pb2 import InteractResponse

CONTROL_SECONDS = 0.05
"""LIBERO's control step."""
LAST_FRAME_SECONDS = 1.5


def rollout(
    policy_address: Annotated[
        str, typer.Option("--policy", help="Policy server.")
    ] = "127.0.0.1:50051",
    env_address: Annotated[str, typer.Option("--env", help="Env server.")] = "127.0.0.1:50052",
    token_file: Annotated[Path | None, typer.Option(help="The client's bearer token.")] = None,
    suite: Annotated[str, typer.Option(help="One that the env server has.")] = "libero_spatial",
    task: Annotated[int, typer.Option(help="Position in the suite, from 0.")] = 0,
    init_state: Annotated[int, typer.Option(help="Official initial state, from 0.")] = 0,
    placement_seed: Annotated[
        int | None, typer.Option(help="Draws a placement instead of an official state.")
    ] = None,
    max_control_steps: Annotated[int, typer.Option(help="0: the suite's limit.")] = 0,
    replan_after: Annotated[
        int, typer.Option(help="Control steps of an answer that are played; 0: all.", min=0)
    ] = 0,
    unnorm_key: Annotated[str, typer.Option(help="Dataset whose units are wanted.")] = "",
    film: Annotated[Path, typer.Option(help="GIF to write.")] = Path("episode.gif"),
) -> None:
    """Run one LIBERO episode against a remote policy and a remote simulator."""
    film.parent.mkdir(parents=True, exist_ok=True)
    frames: list[bytes] = []
    held: list[int] = []
    waits: list[float] = []
    with (
        PolicyClient(policy_address, token_file=token_file) as client,
        EnvClient(env_address, token_file=token_file) as env,
        env.episode(
            suite,
            task,
            init_state=init_state if placement_seed is None else None,
            placement_seed=placement_seed,
            max_control_steps=max_control_steps,
            cameras=client.get_policy().cameras or ["agentview"],
        ) as episode,
    ):
        typer.echo(episode.instruction)
        policy = ChunkedPolicy(client, replan_after=replan_after or None)
        while not episode.ended:
            frames.append(episode.image)
            asked, asks = time.perf_counter(), policy.asks
            seen = observation(episode.state)
            values = policy.act(
                seen.image,
                seen.instruction,
                images=seen.images,
                proprio=seen.proprio,
                unnorm_key=unnorm_key or None,
            )
            if asks:
                waits.append(time.perf_counter() - asked)
            before = episode.state.control_steps
            episode.step(values)
            held.append(episode.state.control_steps - before)
    frames.append(episode.image)
    save_film(film, frames, [*(steps * CONTROL_SECONDS for steps in held), LAST_FRAME_SECONDS])
    version = policy.action.policy_version if policy.action else 0
    typer.echo(
        f"{'success' if episode.success else 'no success'} after {len(held)} actions, "
        f"{episode.state.control_steps} control steps; policy version {version}, "
        f"median {median(waits) * 1000:.0f} ms an answer; {film}"
    )


def observation(state: InteractResponse) -> Observation:
    """What the policy is shown: the main camera comes first; who reads no arm leaves it alone."""
    main, *further = state.frames
    images = {frame.camera: frame.image for frame in further}
    return Observation(main.image, state.instruction, images, state.robot_state.proprio)


def save_film(path: Path, frames: list[bytes], seconds: list[float]) -> None:
    """Writes encoded frames as a GIF, each shown for its seconds."""
    first, *rest = (Image.open(io.BytesIO(frame)) for frame in frames)
    milliseconds = [round(1000 * one) for one in seconds]
    first.save(path, save_all=True, append_images=rest, duration=milliseconds, loop=0)


if __name__ == "__main__":
    try:
        typer.run(rollout)
    except (PolicyError, EnvError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
