"""Makes the simulator's libraries fit for servers: no display, no writes outside one cache folder.

Call `prepare()` before anything imports `libero`, `robosuite` or `mujoco`. Left alone, robosuite
logs to a fixed file in /tmp (which fails where another user owns it), numba caches beside the
installed packages (which fails on a read-only root), LIBERO wants a home directory, and MuJoCo
looks for a display.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import vlarl
import vlarl_env
from vlarl.config.libero import (
    PYOPENGL_PLATFORM,
    SIMULATOR_PACKAGE,
    simulator_environment,
    steady_products,
)

_HOMES = {
    "libero": SIMULATOR_PACKAGE,
    "robosuite": "robosuite",
    "bddl": "bddl",
    "mujoco": "mujoco",
}
"""The simulator's modules, and the packages that they are taken from."""

_OPENGL_PLATFORMS = ("osmesa", "egl")
"""The choices of `MUJOCO_GL` with which PyOpenGL has to agree."""

_PREPARED: dict[str, str] = {}
"""Variables that `prepare` set, which nobody chose."""


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """A writable folder for compiled code and scenes, scaled textures and simplified meshes.

    `VLARL_CACHE`, else vlarl in the user's cache folder, else one of our own in the temporary
    folder where the home directory is missing or read-only.
    """
    candidates = []
    if chosen := environment.get("VLARL_CACHE"):
        candidates.append(Path(chosen))
    if user := environment.get("XDG_CACHE_HOME"):
        candidates.append(Path(user) / "vlarl")
    if home := environment.get("HOME"):
        candidates.append(Path(home) / ".cache" / "vlarl")
    candidates.append(Path(tempfile.gettempdir()) / f"vlarl-{os.getuid()}")
    for folder in candidates:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise OSError(f"no writable cache folder among {', '.join(map(str, candidates))}")


def headless_environment(base: Mapping[str, str], egl_device: int | None) -> dict[str, str]:
    """`base` with the variables that one simulator process needs.

    Args:
        base: Variables to start from; a choice made there wins, but for the device, for what
            would lead to another LIBERO than the installed one, and for PyOpenGL's platform,
            which follows from `MUJOCO_GL`.
        egl_device: GPU to render on; none: software rendering unless `base` chooses.
    """
    cache = cache_folder(base)
    environment = {
        "MUJOCO_GL": "osmesa" if egl_device is None else "egl",
        "OMP_NUM_THREADS": "1",
        **steady_products(),
        "NUMBA_CACHE_DIR": str(cache / "numba"),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        **{name: value for name, value in base.items() if _PREPARED.get(name) != value},
    }
    environment = simulator_environment(environment)
    if (platform := environment["MUJOCO_GL"].lower().strip()) in _OPENGL_PLATFORMS:
        environment[PYOPENGL_PLATFORM] = platform
    # Where this package and the library are: the process may start anywhere.
    roots = dict.fromkeys(
        str(Path(file).parents[1]) for file in (vlarl.__file__, vlarl_env.__file__)
    )
    environment["PYTHONPATH"] = os.pathsep.join(roots)
    if egl_device is not None:
        environment["MUJOCO_EGL_DEVICE_ID"] = str(egl_device)
        # robosuite insists that the device's number occurs in this variable, which may hold UUIDs;
        # the simulator computes nothing with CUDA.
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment


def prepare() -> None:
    """Prepares this process for robosuite. Harmless when repeated; too late once it is imported."""
    if "robosuite" in sys.modules:
        return
    wanted = headless_environment(os.environ, egl_device=None)
    os.environ["LIBERO_CONFIG_PATH"] = wanted.pop("LIBERO_CONFIG_PATH")
    del wanted["PYTHONPATH"]  # which would come too late
    os.environ.pop(PYOPENGL_PLATFORM, None)
    for key, value in wanted.items():
        if key not in os.environ:
            os.environ[key] = _PREPARED[key] = value
    _installed_first()
    # robosuite reads its settings from this module and warns where the private one is missing.
    spec = importlib.util.find_spec("robosuite")
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed("robosuite")
    source = Path(spec.submodule_search_locations[0]) / "macros.py"
    macros_spec = importlib.util.spec_from_file_location("robosuite.macros", source)
    if macros_spec is None or macros_spec.loader is None:
        raise ImportError(f"{source} can't be loaded")
    macros = importlib.util.module_from_spec(macros_spec)
    macros_spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules["robosuite.macros"] = macros
    sys.modules["robosuite.macros_private"] = types.ModuleType("robosuite.macros_private")


def _installed_first() -> None:
    """Takes folders out of the module path in which a clone would hide the installed packages."""
    try:
        homes = {
            module: Path(str(distribution(package).locate_file(""))).resolve()
            for module, package in _HOMES.items()
        }
    except PackageNotFoundError as error:
        raise _not_installed(str(error.name)) from error
    sys.path[:] = [
        entry
        for entry in sys.path
        if not any(
            (Path(entry) / module).is_dir() and Path(entry).resolve() != home
            for module, home in homes.items()
        )
    ]


def _not_installed(package: str) -> ImportError:
    text = f"{package} isn't installed here: the simulator needs its own environment"
    return ImportError(text, name="robosuite")
