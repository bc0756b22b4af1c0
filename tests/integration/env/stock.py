"""LIBERO's own environment, as it comes; only its models aren't compiled more than once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mujoco

Stock = Any
"""LIBERO's own environment, which has no types."""


@contextmanager
def stock_environment(bddl_file: Path, **arguments: Any) -> Iterator[Stock]:  # noqa: ANN401 - theirs
    """`OffScreenRenderEnv` of a task.

    It compiles a scene at each reset, which is most of the time. MuJoCo's copy of what the same XML
    gave before is that model.
    """
    import mujoco
    from robosuite.utils.binding_utils import MjSim

    models: dict[str, mujoco.MjModel] = {}

    def from_xml_string(xml: str) -> MjSim:
        if xml not in models:
            models[xml] = mujoco.MjModel.from_xml_string(xml)
        return MjSim(copy.copy(models[xml]))

    original = MjSim.__dict__["from_xml_string"]
    MjSim.from_xml_string = staticmethod(from_xml_string)
    try:
        from libero.libero.envs.env_wrapper import OffScreenRenderEnv

        env = OffScreenRenderEnv(bddl_file_name=str(bddl_file), **arguments)
        yield env
        env.sim._render_context_offscreen.gl_ctx.make_current()
        env.close()
    finally:
        MjSim.from_xml_string = original
