"""A whole run that is shown on wandb, and gone on with there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("wandb", reason="requirements/wandb.txt has it")

from tests.conftest import Valkey  # noqa: E402
from tests.integration.trainer.test_trainer_loop import (  # noqa: E402
    around,
    train_to_the_end,
    write_config,
)
from tests.wandb_files import rows, run_of, started  # noqa: E402
from vlarl.config import LoggingConfig, dump_toml  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]


async def test_a_run_and_its_continuation_are_one_on_wandb(
    checkpoint: Path, valkey: Valkey, tmp_path: Path
) -> None:
    run_dir = tmp_path / "shown"
    async with around(checkpoint, valkey) as (_, address, _):
        config = write_config(run_dir, checkpoint, valkey.url, address, iterations=1)
        for iterations in (1, 2):
            trainer = config.trainer.model_copy(update={"iterations": iterations})
            logged = {"logging": LoggingConfig(wandb="offline"), "trainer": trainer}
            (run_dir / "config.toml").write_text(dump_toml(config.model_copy(update=logged)))
            await train_to_the_end(run_dir)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    first, second = (one for one in rows(run_dir) if "evaluation_success_rate" in one)
    assert [one for one in rows(run_dir) if "iteration" in one] == lines
    assert [one["env_steps"] for one in (first, second)] == [one["env_steps"] for one in lines]
    assert len({run_of(start).run_id for start in started(run_dir)}) == 1
