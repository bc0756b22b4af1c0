"""Checkpoints by their names on the Hugging Face hub, asked of a small hub on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="runs in the torch environment (.venv)")

from huggingface_hub import constants
from typer.testing import CliRunner

from tests.checkpoint_layouts import lay_out
from tests.local_hub import TOKEN, LocalHub, local_hub
from vlarl.config import ConfigError, RunConfig, load_config
from vlarl.disk import DiskFullError
from vlarl.models.registry import check_policy_checkpoint
from vlarl.weights.hub import folder_of, pinned
from vlarl.weights.hub_names import HubName, hub_name
from vlarl_cli import app
from vlarl_cli.runs import chosen_run

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/openvla-tiny"
REACH = ROOT / "configs/reach.toml"
NAME = "openvla/openvla-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub with one model, and an empty cache. The library reads its variables once."""
    with local_hub() as hub:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        use(hub.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        hub.commit(NAME, lay_out(GOLDEN, tmp_path / "model", lambda _: None))
        yield hub


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("openvla/openvla-7b", HubName("openvla/openvla-7b", "main")),
        ("openvla/openvla-7b@v1.0", HubName("openvla/openvla-7b", "v1.0")),
        ("openvla/openvla-7b@refs/pr/3", HubName("openvla/openvla-7b", "refs/pr/3")),
        (f"openvla/openvla-7b@{COMMIT}", HubName("openvla/openvla-7b", COMMIT)),
        ("https://huggingface.co/openvla/openvla-7b", HubName("openvla/openvla-7b", "main")),
        ("https://huggingface.co/here/it/tree/dev", HubName("here/it", "dev")),
        ("here/missing@main", HubName("here/missing", "main")),
        ("here/folder", None),
        ("here/folder@v1", None),
        ("here/link", None),
        ("here/missing", None),
        ("checkpoints/missing", None),
        ("./here/missing", None),
        ("/openvla/openvla-7b", None),
        ("openvla-7b", None),
        ("a/b/c", None),
        ("../openvla/openvla-7b", None),
    ],
)
def test_what_is_a_folder_and_what_a_name(
    path: str, meant: HubName | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/folder").mkdir(parents=True)
    (tmp_path / "here/folder@v1").mkdir()
    (tmp_path / "here/link").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    assert hub_name(Path(path)) == meant
    if meant is None:
        assert pinned(Path(path)) == folder_of(Path(path)) == Path(path)


def test_only_what_is_needed_is_downloaded_once(hub: LocalHub, tmp_path: Path) -> None:
    model = tmp_path / "model"
    wanted = sorted(path.name for path in model.iterdir() if path.suffix != ".npz")
    for name in ("pytorch_model.bin", "modeling.py", "x.pt", "README.md", "run/old.safetensors"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("no")
    (model / "policy").mkdir()
    (model / "policy/config.json").write_text("{}")
    commit = hub.commit(NAME, model)
    folder = folder_of(Path(NAME))
    assert hub.downloaded == sorted([*wanted, "policy/config.json"])
    assert (folder.name, check_policy_checkpoint(folder).action_dim) == (commit, 7)

    hub.asked.clear()
    assert folder_of(Path(f"{NAME}@{commit}")) == folder
    assert hub.asked == []
    (folder / "tokenizer.json").resolve().unlink()
    assert folder_of(Path(f"{NAME}@{commit}")) == folder
    assert hub.downloaded == ["tokenizer.json"]


def test_interrupted_it_ends_at_once_and_goes_on(hub: LocalHub, tmp_path: Path) -> None:
    commit = hub.revisions[NAME]["main"]
    program = (
        "from pathlib import Path; from vlarl.weights.hub import folder_of; "
        f"print(folder_of(Path('{NAME}@{commit}')))"
    )
    command = [sys.executable, "-c", program]
    places = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "own")}
    online = {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **places, **online}
    hub.pause_at = "model.safetensors"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as begun:
        while "model.safetensors" not in hub.downloaded:
            assert begun.poll() is None
            time.sleep(0.05)
        begun.send_signal(signal.SIGINT)
        assert "interrupted" in begun.communicate(timeout=60)[1]
        assert begun.returncode == 130
    hub.go_on.set()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith(commit), done.stderr
    assert check_policy_checkpoint(Path(done.stdout.strip())).action_dim == 7


def test_progress_is_told(
    hub: LocalHub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(Path(NAME), show=False)
    assert "downloading" not in capfd.readouterr().err
    hub.commit("openvla/other", GOLDEN)
    folder_of(Path("openvla/other"))
    assert "downloading openvla/other: 5.25 MiB" in capfd.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, for rich
    hub.commit("openvla/third", GOLDEN)
    folder_of(Path("openvla/third"))
    shown = capfd.readouterr().err
    assert "downloading openvla/third" in shown
    assert "5.3/5.3 MiB" in shown


def test_a_run_keeps_the_commit_with_which_it_began(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(
        config: Path | None = None, resume: Path | None = None, *overrides: str
    ) -> RunConfig:
        folder = None if resume else tmp_path / "run"
        with chosen_run(RunConfig, "it", config, resume, folder, list(overrides)) as (settings, _):
            return settings

    first = hub.revisions[NAME]["main"]
    begun = choose(REACH, None, f"policy.checkpoint={NAME}")
    assert begun.policy.checkpoint.parts[-2:] == ("snapshots", first)
    named = Path(f"{NAME}@{first}")
    assert load_config(tmp_path / "run/config.toml").policy.checkpoint == named

    (tmp_path / "model/model.safetensors").write_bytes(
        (ROOT / "policies/reach/model.safetensors").read_bytes()
    )
    second = hub.commit(NAME, tmp_path / "model")
    assert pinned(Path(NAME)) == Path(f"{NAME}@{second}")
    resumed = choose(None, tmp_path / "run", "trainer.iterations=77")
    assert resumed.policy.checkpoint == begun.policy.checkpoint
    assert load_config(tmp_path / "run/config.toml").policy.checkpoint == named
    # The same weights elsewhere are the same; those of the later commit aren't.
    moved = choose(None, tmp_path / "run", f"policy.checkpoint={GOLDEN}")
    assert moved.policy.checkpoint == GOLDEN
    with pytest.raises(ConfigError, match="holds something else"):
        choose(None, tmp_path / "run", f"policy.checkpoint={NAME}")

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ConfigError, match=f"must all have the same weights: write {NAME}@{second}"):
        choose(None, tmp_path / "run", f"policy.checkpoint={NAME}")


def test_a_stack_that_starts_again_keeps_its_commit(hub: LocalHub, tmp_path: Path) -> None:
    def begin(name: str) -> tuple[int, str]:
        command = ["begin", str(REACH), "--run-dir", str(tmp_path / "run")]
        command += ["--set", "unnorm_key=bridge_orig", "--set", f"policy.checkpoint={name}"]
        done = CliRunner().invoke(app, command)
        return done.exit_code, done.output

    assert begin(NAME)[0] == 0
    saved = (tmp_path / "run/config.toml").read_text()
    assert f'"{NAME}@{hub.revisions[NAME]["main"]}"' in saved
    hub.commit(NAME, GOLDEN)
    hub.asked.clear()
    assert begin(NAME)[0] == begin(f"{NAME}@main")[0] == 0
    assert (tmp_path / "run/config.toml").read_text() == saved
    assert hub.asked == []
    for other in ("openvla/other", f"{NAME}@{COMMIT}"):
        code, said = begin(other)
        assert (code, f"and now policy.checkpoint is {other}: leave it so" in said) == (1, True)


def absent(hub: LocalHub) -> str:
    return "openvla/absent"


def private(hub: LocalHub) -> str:
    hub.private.add(NAME)
    return NAME


def wrong_token(hub: LocalHub) -> str:
    os.environ["HF_TOKEN"] = TOKEN[:-1]
    return private(hub)


def gated(hub: LocalHub) -> str:
    hub.gated.add(NAME)
    return NAME


def without(hub: LocalHub, *files: str, and_with: str = "") -> str:
    (commit,) = hub.revisions[NAME].values()
    one = hub.trees[commit].pop(files[0])
    if and_with:
        hub.trees[commit][and_with] = one
    return NAME


def hub_is_down(hub: LocalHub) -> str:
    hub.down = True
    return NAME


def too_large(hub: LocalHub) -> str:
    hub.sizes["model.safetensors"] = 2**60
    return NAME


REFUSED: dict[str, tuple[Callable[[LocalHub], str], list[str]]] = {
    "wrong name": (absent, ["has no model openvla/absent", "correct the name", "such a folder"]),
    "wrong revision": (
        lambda _: f"{NAME}@no",
        [f"{NAME} has no revision 'no': name a branch, a tag or a commit"],
    ),
    "private": (private, ["it is private and HF_TOKEN isn't set", "set HF_TOKEN to a token"]),
    "wrong token": (wrong_token, ["it is private and the token in use may not read it"]),
    "gated": (gated, [f"{NAME} is gated: ask for access on http", "set HF_TOKEN"]),
    "hub is down": (hub_is_down, ["can't be reached", "503"]),
    "pickled": (
        lambda hub: without(hub, "model.safetensors", and_with="pytorch_model.bin"),
        ["its weights are pickled (pytorch_model.bin)", "checkpoint adopt DIR OUT`, and name OUT"],
    ),
    "no weights": (lambda hub: without(hub, "model.safetensors"), ["it is no checkpoint"]),
    "OFT": (
        lambda hub: without(hub, "golden.npz", and_with="action_head--150000_checkpoint.pt"),
        ["is OpenVLA-OFT (action_head--150000_checkpoint.pt)", "they have no log-probs"],
    ),
    "OFT in parts": (
        lambda hub: without(hub, "golden.npz", and_with="proprio_projector--1_checkpoint.pt"),
        [
            "is OpenVLA-OFT (proprio_projector--1_checkpoint.pt), of which a part is pickled",
            "--local-dir DIR`, then `",
            "checkpoint adopt DIR OUT --chunk 8 --convention stop`",
        ],
    ),
    "full disk": (too_large, ["has no room for the download of openvla/openvla-tiny (1.07e+09 G"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_refused_in_a_sentence(
    case: str, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    prepare, said = REFUSED[case]
    name = prepare(hub)
    with pytest.raises((ConfigError, DiskFullError)) as refused:
        folder_of(Path(name))
    assert len(str(refused.value).splitlines()) == 1
    for part in said:
        assert part in str(refused.value)
    assert hub.downloaded == []


def test_parts_are_no_matter_where_they_have_been_adopted(hub: LocalHub) -> None:
    name = without(hub, "golden.npz", and_with="proprio_projector--1_checkpoint.pt")
    (commit,) = hub.revisions[NAME].values()
    hub.trees[commit]["family.json"] = hub.trees[commit]["config.json"]
    assert (folder_of(Path(name)) / "family.json").exists()


def test_a_token_opens_what_is_private(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.private.add(NAME)
    hub.gated.add(NAME)
    assert (folder_of(Path(NAME)) / "model.safetensors").exists()


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network_the_cache_is_enough(
    offline: bool, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(Path(NAME))
    use("http://127.0.0.1:1", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    assert folder_of(Path(NAME)) == folder
    way = "HF_HUB_OFFLINE is set: set it to 0, or" if offline else "look at the network and HTTPS_P"
    for missing in ("openvla/other", f"{NAME}@{COMMIT}"):
        with pytest.raises(ConfigError) as refused:
            folder_of(Path(missing))
        assert way in str(refused.value)
        assert "--local-dir DIR`" in str(refused.value)


def test_a_command_finds_the_hub_by_its_variables(hub: LocalHub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlarl", "checkpoint", "show", NAME]
    places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    places["HF_HUB_OFFLINE"] = "0"
    shown = subprocess.run(
        command, env={**os.environ, **places}, capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stderr
    assert "parameters    1,363,940" in shown.stdout
    assert list(tmp_path.glob("home/hub/models--openvla--openvla-tiny/snapshots/*/config.json"))
