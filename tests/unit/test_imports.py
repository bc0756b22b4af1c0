"""Who imports whom, by reading every module: imports in functions and those for types count, too.

vlarl_cli ─▶ vlarl_jobs ─▶ vlarl_policy, vlarl_env, vlarl_reward, vlarl_trainer ─▶ vlarl
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from tests.roots import ROOTS

SERVICES = {"vlarl_policy", "vlarl_env", "vlarl_reward", "vlarl_trainer"}
STUBS = {"policy", "env", "reward", "rollout", "trainer"}
BELOW = {
    "data": {"learning", "models", "weights", "config"},
    "learning": {"models", "weights", "config"},
    "models": {"weights", "config"},
    "weights": set(),
    "clients": {"rpc", "config"},
    "launch": {"rpc", "config"},
    "rpc": {"config"},
    "queue": {"config"},
    "config": set(),
}
"""What each folder of the library may import, beside stubs and the files that lie above it."""


class Import(NamedTuple):
    """A module that imports another of ours."""

    importer: str
    target: str
    place: str
    at_start: bool
    """Whether it happens while the importer is imported."""


def modules(roots: Iterable[Path]) -> dict[str, Path]:
    """Every module of ours by name."""
    found = {}
    for root in roots:
        for path in root.glob("vlarl*/**/*.py"):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: Iterable[str]) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {id(node) for part in ast.walk(tree) if _runs_later(part) for node in ast.walk(part)}
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                targets = {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module), level=0):
                whole = {f"{module}.{alias.name}" for alias in node.names}
                targets = {one if one in known else module for one in whole}
            case _:
                continue
        for target in sorted(targets & set(known) - {name}):
            yield Import(name, target, f"{path}:{node.lineno}", id(node) not in later)


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def allowed(one: Import) -> bool:
    importer, target = one.importer.split("."), one.target.split(".")
    if target[0] in ("vlarl_cli", "vlarl_jobs", *SERVICES):
        own = importer[0] == target[0]
        in_command = importer[0] == "vlarl_cli" and not one.at_start
        return own or in_command or (importer[0] == "vlarl_jobs" and target[0] in SERVICES)
    if importer[0] != "vlarl" or target[1:2] in ([], importer[1:2]):
        return True
    if importer == ["vlarl"]:  # what it offers is loaded when it is used
        return not one.at_start
    if target[1] not in BELOW:
        return importer[1] not in STUBS or target[1] in STUBS
    return target[1] in BELOW.get(importer[1], set())


def offences(roots: Iterable[Path]) -> list[str]:
    """Imports that run against the rules, and a circle, if there is one."""
    known = modules(roots)
    found = [one for name, path in known.items() for one in imports(name, path, known)]
    wrong = [f"{one.place}: {one.target}" for one in found if not allowed(one)]
    graph: dict[str, set[str]] = {}
    for one in found:
        graph.setdefault(one.importer, set()).add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        wrong.append(f"a circle: {' <- '.join(error.args[1])}")
    return wrong


def test_no_import_runs_against_the_rules_or_in_a_circle() -> None:
    assert len(modules(ROOTS)) > 250
    assert offences(ROOTS) == []


TREE = {
    "vlarl/files.py": "",
    "vlarl/weights/folder.py": "from vlarl.files import share",
    "vlarl/learning/fit.py": "from vlarl.weights import folder\nimport vlarl_env.pool",
    "vlarl/weights/merge.py": "def merge():\n    from vlarl.learning.fit import Fit",
    "vlarl_env/pool.py": "import vlarl.learning.fit\nfrom vlarl_jobs.sft import main",
    "vlarl_policy/server.py": "if TYPE_CHECKING:\n    from vlarl_env.pool import Pool",
    "vlarl_jobs/sft/main.py": "from vlarl.learning.fit import Fit\nimport vlarl_policy.server",
    "vlarl_cli/sft.py": "import vlarl_jobs.sft.main\ndef sft():\n    import vlarl_jobs.sft.main",
}


def test_an_import_upwards_and_a_circle_are_found(tmp_path: Path) -> None:
    for name, code in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    *upwards, circle = offences([tmp_path])
    assert {one.removeprefix(f"{tmp_path}/") for one in upwards} == {
        "vlarl/learning/fit.py:2: vlarl_env.pool",
        "vlarl/weights/merge.py:2: vlarl.learning.fit",
        "vlarl_env/pool.py:2: vlarl_jobs.sft.main",
        "vlarl_policy/server.py:2: vlarl_env.pool",
        "vlarl_cli/sft.py:1: vlarl_jobs.sft.main",
    }
    assert circle.startswith("a circle: ")
