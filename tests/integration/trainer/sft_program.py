"""Runs supervised fine-tuning in a process of its own: sft_program.py RUN_DIR."""

import sys
from pathlib import Path

from vlarl.config import SftConfig, load_section
from vlarl.errors import FatalError
from vlarl_cli.logs import configure_logging
from vlarl_jobs.sft.main import run


def main(directory: Path) -> None:
    configure_logging()
    try:
        run(load_section(SftConfig, directory / "config.toml"), directory)
    except FatalError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
