"""docs/api.md says what protos/ say and servers do, and nothing of version 0.1.0 goes away."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RELEASED = ROOT / "tests/golden/contract-0.1.0.binpb"
PAGE = ROOT / "docs/api.md"


def test_the_page_is_what_the_protos_say() -> None:
    pytest.importorskip("grpc_tools")
    from scripts.api_reference import reference

    assert PAGE.read_text() == reference(), "run `make docs`"


def test_every_link_of_the_page_leads_somewhere() -> None:
    page = PAGE.read_text()
    headings = [line.lstrip("# ").lower() for line in page.splitlines() if line.startswith("#")]
    assert len(headings) == len(set(headings))
    links = set(re.findall(r"\(#([^)]+)\)", page))
    assert len(links) > 30
    assert links <= set(headings)


@pytest.mark.parametrize("service", ["policy", "env", "reward", "trainer", "all"])
def test_the_reasons_of_errors_are_those_that_servers_give(service: str) -> None:
    head, *parts = re.split(r"^## vlarl\.(\w+)\.v1$", PAGE.read_text(), flags=re.MULTILINE)
    told = dict(zip(parts[::2], parts[1::2], strict=True))
    said = set(re.findall(r"^- .*", told.get(service, head), flags=re.MULTILINE))
    documented = set(re.findall(r"`([A-Z_]+)`", "\n".join(said)))
    folder = ROOT / ("vlarl/rpc" if service == "all" else f"services/{service}/vlarl_{service}")
    sources = [path.read_text() for path in sorted(folder.rglob("*.py"))]
    given = set(re.findall(r'reason="([A-Z_]+)"', "\n".join(sources)))
    assert documented == given - {"OLDER_VERSION"}  # a docstring's example


def breaking(folder: Path) -> tuple[int, str]:
    """What buf says to these protos, against those of 0.1.0."""
    buf = Path(sys.executable).with_name("buf")
    if not buf.exists():
        pytest.skip("buf is in the torch environment (.venv)")
    done = subprocess.run(
        [buf, "breaking", "--against", RELEASED], cwd=folder, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_nothing_of_the_released_contract_is_gone() -> None:
    assert breaking(ROOT) == (0, "")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  repeated float values = 3;\n", ""),
        ("repeated float values = 3;", "repeated double values = 3;"),
        ("float temperature = 2;", "float warmth = 2;"),
        ("  rpc GetPolicy(GetPolicyRequest) returns (GetPolicyResponse);\n", ""),
    ],
)
def test_a_change_that_breaks_clients_is_noticed(tmp_path: Path, before: str, after: str) -> None:
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    proto = tmp_path / "protos/vlarl/policy/v1/policy.proto"
    text = proto.read_text()
    assert text.count(before) == 1
    proto.write_text(text.replace(before, after))
    code, said = breaking(tmp_path)
    assert code == 100
    assert "policy.proto" in said
