"""A trainer's run, for a process of its own, with config.toml in the run's folder."""

import sys
from pathlib import Path

from vlarl.config import load_config
from vlarl.errors import FatalError
from vlarl_cli.logs import configure_logging
from vlarl_trainer.main import run


def main(directory: Path) -> None:
    configure_logging()
    try:
        run(load_config(directory / "config.toml"), directory, metrics_listen=None)
    except FatalError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
