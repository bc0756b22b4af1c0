"""The runs of a table, one `vlarl up` after the other."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence

from vlarl.config import save_config
from vlarl.json_lines import DamagedFileError
from vlarl.launch.process import Service
from vlarl.ownership import owned
from vlarl.terminal import say
from vlarl_jobs.ablation.failures import record_failure
from vlarl_jobs.ablation.plan import Ablation, PlannedRun, Standing, standing
from vlarl_jobs.ablation.table import read_table, write_table
from vlarl_jobs.report.errors import ReportError
from vlarl_jobs.report.sections import duration, percent

UP = (sys.executable, "-m", "vlarl", "up")
"""What a run is; `--resume FOLDER` follows."""

_STOP_SECONDS = 150.0
"""For `vlarl up`, which ends its services one by one and gives each its own time."""


class Series:
    """Runs what isn't finished. A run that fails is recorded, and the next one begins."""

    def __init__(
        self,
        ablation: Ablation,
        command: Sequence[str] = UP,
        stop_seconds: float = _STOP_SECONDS,
    ) -> None:
        """Starts nothing yet.

        Args:
            ablation: the table.
            command: what is run, `--resume FOLDER` behind it.
            stop_seconds: that a run has to stop when the series does.
        """
        self._ablation = ablation
        self._command = command
        self._stop_seconds = stop_seconds
        self._current: Service | None = None
        self._held = contextlib.ExitStack()
        self._worked = 0.0
        self._seconds = 0.0

    async def run(self) -> int:
        """Goes on until every run is finished or has failed; writes the table after each.

        Returns:
            The exit code: 1 where a run failed.

        Raises:
            FatalError: a folder is damaged or holds a run of another configuration, or another
                series is at work there.
        """
        # Until `stop`: a run that is being stopped isn't anybody else's yet.
        self._held.enter_context(owned(self._ablation.out, "vlarl ablate"))
        before = [standing(planned) for planned in self._ablation.runs]
        waiting = [one for one in before if not one.finished]
        self._announce(before, waiting)
        failed = []
        for place, one in enumerate(waiting):
            if not await self._run(one, waiting[place + 1 :]):
                failed.append(one.planned.name)
            write_table(read_table(self._ablation), self._ablation.out)
        if failed:
            names = ", ".join(failed)
            say((f"{len(failed)} failed", "red"), f": {names}; the same command tries again")
        return 1 if failed else 0

    async def stop(self) -> None:
        """Ends the run that is going on, so that it can be gone on with, and leaves the folder."""
        if self._current is not None:
            await self._current.stop(self._stop_seconds)
        self._held.close()

    async def _run(self, before: Standing, following: Sequence[Standing]) -> bool:
        """One run, to its end; whether it is finished then."""
        planned = before.planned
        if not before.begun:
            save_config(planned.config, planned.folder)
        log = planned.folder / "logs" / "up.log"
        verb = f"goes on after {before.iterations}" if before.begun else "begins"
        say(f"{planned.name} {verb}; its log: {log}")
        command = [*self._command, "--resume", str(planned.folder)]
        # Unbuffered, or the log's lines would come long after what they tell of.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        service = Service(planned.name, command, log, environment)
        started = time.monotonic()
        self._current = service
        await service.start()
        how = await service.epitaph()
        await service.stop(self._stop_seconds)  # children that it left behind
        self._current = None
        seconds = time.monotonic() - started
        try:
            after = standing(planned)
        except (ReportError, DamagedFileError) as damage:
            after, how = before, str(damage)
        # The folder says whether it is finished: a trainer that is done may still trip while
        # everything is being stopped.
        if not after.finished:
            self._fail(planned, how)
            return False
        self._worked += before.left
        self._seconds += seconds
        say(("✓", "green"), f" {self._progress(after, following, seconds)}")
        return True

    def _fail(self, planned: PlannedRun, how: str) -> None:
        record_failure(self._ablation.out, planned.name, how)
        say((f"{planned.name} failed", "red"), f" {how}")

    def _announce(self, before: Sequence[Standing], waiting: Sequence[Standing]) -> None:
        config = self._ablation.config
        say(
            (config.name, "bold"),
            f": {len(config.variants)} variants x {len(config.seeds)} seeds = {len(before)} runs "
            f"in {self._ablation.out}; {len(before) - len(waiting)} finished, "
            f"{sum(one.begun for one in waiting)} begun",
        )

    def _progress(self, after: Standing, following: Sequence[Standing], seconds: float) -> str:
        """A finished run in a line."""
        assert after.run is not None  # noqa: S101 - it is finished
        scored = [one.total.rate for one in after.run.evaluations if one.total.episodes]
        ends = dict.fromkeys((scored[0], scored[-1])) if scored else {}
        greedy = f"  greedy success {' → '.join(map(percent, ends))}" if ends else ""
        total = len(self._ablation.runs)
        left = sum(one.left for one in following)
        eta = f"ETA {duration(left * self._seconds / self._worked)}" if self._worked else "ETA –"
        return (
            f"{after.planned.name}{greedy}  in {duration(seconds)}  "
            f"{total - len(following)} of {total} runs  {eta}"
        )
