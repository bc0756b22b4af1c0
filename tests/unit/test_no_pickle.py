"""Nothing that is read can run code: no pickle on any wire and in any file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# torch.save writes pickles and torch.load reads them, if only to tensors; safetensors has none.
CALLS = {"torch.load", "torch.save", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load"}
EXCEPTIONS = {"vlarl/models/openvla/adoption.py": ["torch.load"]}
"""`vlarl checkpoint adopt` converts pickled weights, once, and builds nothing but tensors."""
OBJECTS = {"send_pyobj", "recv_pyobj", "broadcast_object_list", "all_gather_object"}


def offences(source: str) -> Iterator[str]:
    """What of a program would read or write pickles."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in PICKLING)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLING:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS or called.split(".")[-1] in OBJECTS:
                yield called
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg == "allow_pickle" and not allowed:
                    yield f"{called}(allow_pickle=...)"
            if called in {"np.load", "numpy.load"} and not any(
                keyword.arg == "allow_pickle" for keyword in node.keywords
            ):
                yield f"{called} without allow_pickle=False"


def test_no_program_of_ours_pickles() -> None:
    parts = ("vlarl", "vlarl_cli", "vlarl_jobs", "services")
    files = [path for part in parts for path in (ROOT / part).rglob("*.py")]
    assert len(files) > 150
    found = {str(path.relative_to(ROOT)): list(offences(path.read_text())) for path in files}
    assert {path: what for path, what in found.items() if what} == EXCEPTIONS


@pytest.mark.parametrize("path", EXCEPTIONS)
def test_the_exception_builds_nothing_but_tensors(path: str) -> None:
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS
    ]
    assert calls
    for call in calls:
        given = {one.arg: ast.unparse(one.value) for one in call.keywords}
        assert given["weights_only"] == "True"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "state = torch.load(path)",
        "dist.broadcast_object_list(objects)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_scan_would_notice(source: str) -> None:
    assert list(offences(source))
