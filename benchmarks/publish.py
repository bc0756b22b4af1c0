"""Turns the results of the last benchmark runs into docs/benchmarks.md.

    python -m benchmarks.publish

What the numbers mean stands in each benchmark's docstring; remarks on a result go into
docs/benchmarks-remarks.md, which is copied to the end. A benchmark that has no results here keeps
the numbers that the page has.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS

PAGE = Path("docs/benchmarks.md")
REMARKS = Path("docs/benchmarks-remarks.md")
ORDER = (
    "env",
    "env_memory",
    "scenes",
    "policy",
    "policy_chunks",
    "load",
    "swap",
    "precision",
    "loop",
    "loop_chunks",
    "staleness",
    "reward",
    "learner",
    "scale",
    "blind",
    "seven_b",
)


def main() -> None:
    """Writes the page."""
    before = sections(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    lines = [
        "# Benchmarks",
        "",
        "This page is for whoever asks how fast each part is, and against what. `make bench` runs",
        "all benchmarks. Every ratio is of one run on one machine. On a GPU that you have for some",
        "minutes, `python -m benchmarks.gpu_check` checks and measures server and stack",
        "([gpu.md](gpu.md#the-check)).",
    ]
    for name in ORDER:
        file = RESULTS / f"{name}.json"
        if file.exists():
            lines += section(json.loads(file.read_text(encoding="utf-8")))
        else:
            lines += before.get(name, [])
    if REMARKS.exists():
        lines += ["", REMARKS.read_text(encoding="utf-8").rstrip()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def sections(page: str) -> dict[str, list[str]]:
    """The tables of a page, by benchmark."""
    found = {}
    for part in re.split(r"\n(?=## )", page):
        if named := re.search(r"^`python -m benchmarks\.(\w+)`", part, flags=re.MULTILINE):
            found[named[1]] = ["", *part.rstrip().splitlines()]
    return found


def section(result: dict[str, Any]) -> list[str]:
    """One benchmark's table."""
    machine = result["machine"]
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    lines = [
        "",
        f"## {result['title']}",
        "",
        f"`python -m benchmarks.{result['name']}`, {result['began'][:10]}, {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB{gpu}; {packages}.",
        "",
        "| what | value | unit | ratio | wanted | |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]
    return lines + [row(measurement) for measurement in result["measurements"]]


def row(measurement: dict[str, Any]) -> str:
    """One line of it."""
    ratio, wanted = measurement["ratio"], measurement["at_least"]
    of = "" if ratio is None else f"{ratio:.2f} of {measurement['against']}"
    aim = ""
    if wanted is not None:
        aim = f"{wanted:g}: {'met' if ratio >= wanted else '**missed**'}"
    value = f"{measurement['value']:,.4g}"
    cells = (measurement["name"], value, measurement["unit"], of, aim, measurement["note"])
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
