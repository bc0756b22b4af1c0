"""How often the experts reach their goals from the official initial states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from vlarl_env.simulators.libero.suites import SuiteTask
from vlarl_jobs.demonstrations.console import TaskBars
from vlarl_jobs.demonstrations.messages import Answer, PlayOrder, Settings
from vlarl_jobs.demonstrations.worker_processes import run_crew


@dataclass
class TaskResult:
    """What became of one task's episodes."""

    task: SuiteTask
    episodes: int = 0
    lengths: list[int] = field(default_factory=list)
    """Control steps of those that reached the goal."""
    missed: list[int] = field(default_factory=list)
    """Initial states of those that didn't."""

    @property
    def median_length(self) -> float | None:
        """Median control steps of an episode that reached the goal."""
        return median(self.lengths) if self.lengths else None


async def measure(
    tasks: Sequence[SuiteTask], states: int, seed: int, settings: Settings, processes: int
) -> list[TaskResult]:
    """Plays one episode from each of the first `states` official states of each task.

    Raises:
        WorkerDiedError: a worker ended on its own.
    """
    results = {task.index: TaskResult(task) for task in tasks}
    orders = _orders(tasks, states, seed)
    totals = [(f"{task.suite} {task.index}", min(states, task.init_states)) for task in tasks]
    with TaskBars(totals) as bars:

        def on_answer(order: PlayOrder, answer: Answer) -> None:
            result = results[order.index]
            result.episodes += 1
            if answer.success:
                result.lengths.append(answer.length)
            else:
                result.missed.append(order.number)
            bars.show(f"{order.suite} {order.index}", result.episodes)

        await run_crew(settings, processes, lambda: next(orders, None), on_answer)
    return list(results.values())


def _orders(tasks: Sequence[SuiteTask], states: int, seed: int) -> Iterator[PlayOrder]:
    for task in tasks:
        for number in range(min(states, task.init_states)):
            yield PlayOrder(
                suite=task.suite,
                index=task.index,
                number=number,
                init_state=number,
                noise_seed=seed * 1000 + number,
            )
