"""Runs a trainer in a process of its own: trainer_program.py RUN_DIR, with config.toml in it."""

import sys
from pathlib import Path

from vlarl.config import load_config
from vlarl.errors import FatalError
from vlarl_cli.logs import configure_logging
from vlarl_trainer.main import run

if __name__ == "__main__":
    configure_logging()
    directory = Path(sys.argv[1])
    try:
        run(load_config(directory / "config.toml"), directory, metrics_listen=None)
    except FatalError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
