"""Which keys may change when a run goes on, and that the others are refused before anything is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlarl.config import (
    ConfigError,
    RewardModelConfig,
    RunConfig,
    Section,
    SftConfig,
    load_section,
    save_config,
)
from vlarl.config.resuming import CONTENTS, OnResume, check_terms, kinds, terms
from vlarl.data.contents import content_digest
from vlarl.models.meaning import meaning_terms
from vlarl_cli import app
from vlarl_cli.runs import chosen_run

ROOT = Path(__file__).parents[3]
ROOTS: dict[type[Section], str] = {
    RunConfig: "reach",
    SftConfig: "sft-reach",
    RewardModelConfig: "reward-reach",
}
FIXED = {
    "name": "two",
    "seed": 4,
    "unnorm_key": "other",
    "tasks.suite": "approach",
    "policy.center_crop": True,
    "env.cameras": ["robot0_eye_in_hand"],
    "env.render_size": 512,
    "env.crop": [1, 2, 3, 4],
    "env.action_repeat": 7,
    "trainer.algorithm": "grpo",
    "trainer.grpo.group_size": 4,
    "trainer.rloo.group_size": 4,
    "trainer.lora.rank": 8,
    "trainer.lora.alpha": 64.0,
    "trainer.critic.hidden": [8, 8],
    "trainer.critic.features": "base",
    "trainer.critic.patch_channels": 9,
}


@pytest.mark.parametrize("root", ROOTS)
def test_every_key_has_a_kind(root: type[Section]) -> None:
    """A new key is classified in vlarl/config/resuming.py: may it change when a run goes on?"""
    known = kinds(root)
    assert [key for key, kind in known.items() if kind is None] == []
    assert all(kind.reason for kind in known.values() if kind.on_resume is OnResume.FIXED)


def test_no_kind_is_given_to_a_key_that_is_gone() -> None:
    from vlarl.config.resuming import _KINDS

    for section, keys in _KINDS.items():
        named = [*keys.free.split(), *keys.ahead.split(), *keys.fixed]
        assert sorted(named) == sorted(set(named))
        assert set(named) <= section.model_fields.keys(), section.__name__


def test_a_camera_that_is_not_named_is_the_one_that_runs_of_before_name() -> None:
    assert terms(RunConfig())["env.cameras"] == ["agentview"]


def begun(root: type[Section], folder: Path, overrides: tuple[str, ...] = ()) -> Path:
    config = load_section(root, ROOT / f"configs/{ROOTS[root]}.toml", overrides)
    save_config(config, folder)
    return folder


def go_on(root: type[Section], run: Path, *overrides: str) -> None:
    with chosen_run(root, "vlarl up", None, run, None, list(overrides)):
        pass


def test_the_fixed_keys_of_a_run_are_these() -> None:
    fixed = {key for key, one in kinds(RunConfig).items() if one.on_resume is OnResume.FIXED}
    assert fixed == {*FIXED, "policy.checkpoint"}


@pytest.mark.parametrize("key", FIXED)
def test_what_was_learned_keeps_its_meaning(tmp_path: Path, key: str) -> None:
    run = begun(RunConfig, tmp_path / "run")
    if (algorithm := key.split(".")[-2:][0]) in ("grpo", "rloo"):
        size = "trainer.episodes_per_iteration=16"
        save_config(load_section(RunConfig, None, [f"trainer.algorithm={algorithm}", size]), run)
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(ConfigError) as refused:
        go_on(RunConfig, run, f"{key}={json.dumps(FIXED[key])}")
    said = str(refused.value)
    assert said.startswith(f"{run} began with ")
    assert f"{key} = {json.dumps(FIXED[key])}" in said
    assert "\n" not in said
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    go_on(RunConfig, run)


def test_all_else_may_change(tmp_path: Path) -> None:
    run = begun(RunConfig, tmp_path / "run")
    changes = ["trainer.ppo.learning_rate=1e-6", "trainer.temperature=0.7", "env.processes=9"]
    changes += ["trainer.iterations=3", "tasks.max_actions=9", "reward.coefficient=0.5"]
    go_on(RunConfig, run, *changes, "env.replan_after=4")
    assert load_section(RunConfig, run / "config.toml").env.processes == 9


@pytest.mark.parametrize(
    ("root", "change"),
    [
        (SftConfig, 'mode="full"'),
        (SftConfig, "lora.alpha=3.5"),
        (SftConfig, "data.held_out=0.3"),
        (SftConfig, "model.text_dim=64"),
        (SftConfig, "augmentation.random_crop=true"),
        (RewardModelConfig, "labels.lead_seconds=9"),
        (RewardModelConfig, "lora.rank=3"),
        (RewardModelConfig, "data.tail_seconds=9"),
    ],
)
def test_other_runs_keep_theirs(tmp_path: Path, root: type[Section], change: str) -> None:
    run = begun(root, tmp_path / "run", ('mode="lora"',) if root is SftConfig else ())
    before = (run / "config.toml").read_text()
    with pytest.raises(ConfigError, match=f"{change.partition('=')[0]} = "):
        go_on(root, run, change)
    assert (run / "config.toml").read_text() == before
    go_on(root, run, "training.learning_rate=1e-6", "training.steps=7", "export=last")


def checkpoint_of(run: Path, **state: object) -> Path:
    """A checkpoint's state, as the trainer writes it; its tensors aren't looked at."""
    folder = run / "checkpoints/iteration-00003"
    folder.mkdir(parents=True)
    written = {"run_id": "reach", "base_digest": "abc"} | state
    (folder / "state.json").write_text(json.dumps(written))
    return folder


def test_the_checkpoint_knows_better_than_a_configuration_that_was_changed(tmp_path: Path) -> None:
    run = begun(RunConfig, tmp_path / "run")
    learned = terms(load_section(RunConfig, run / "config.toml"))
    checkpoint_of(run, terms=learned)
    begun(RunConfig, run, ("trainer.lora.alpha=99",))
    with pytest.raises(ConfigError, match=r"with trainer.lora.alpha = .*, not with .* = 99"):
        go_on(RunConfig, run)
    go_on(RunConfig, run, f"trainer.lora.alpha={learned['trainer.lora.alpha']}")


def test_a_checkpoint_that_was_carried_elsewhere_is_no_new_runs(tmp_path: Path) -> None:
    learned = terms(load_section(RunConfig, ROOT / "configs/reach.toml"))
    folder = checkpoint_of(tmp_path / "run", terms=learned | {"name": "run"})
    changed = ["trainer.lora.alpha=99"]
    chosen = chosen_run(
        RunConfig, "vlarl up", ROOT / "configs/reach.toml", None, tmp_path / "run", changed
    )
    with pytest.raises(ConfigError, match=f"{folder} has learned with trainer.lora.alpha"), chosen:
        pass
    assert not (tmp_path / "run/config.toml").exists()


def test_an_older_checkpoint_leaves_it_to_the_runs_configuration(tmp_path: Path) -> None:
    run = begun(RunConfig, tmp_path / "run")
    checkpoint_of(run)
    go_on(RunConfig, run)
    with pytest.raises(ConfigError, match=r"trainer\.lora\.alpha"):
        go_on(RunConfig, run, "trainer.lora.alpha=99")


def test_what_an_older_version_did_not_know_is_not_compared() -> None:
    now = {"seed": 3, "trainer.lora.alpha": 2.0}
    check_terms(RunConfig, "it", {"seed": 3}, now)
    check_terms(RunConfig, "it", {"seed": 3, "gone": 1} | now, now)


@pytest.mark.torch
def test_weights_may_lie_elsewhere_but_must_be_the_same(tmp_path: Path) -> None:
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    small = {"image_size": 28, "tower_dim": 32, "text_dim": 64, "tower_depth": 2}
    for name, seed in (("was", 1), ("same", 1), ("other", 2)):
        make_tiny_checkpoint(tmp_path / name, seed=seed, **small)
    run = begun(RunConfig, tmp_path / "run", (f"policy.checkpoint={tmp_path / 'was'}",))
    before = (run / "config.toml").read_text()
    changed = f"policy.checkpoint={tmp_path / 'other'}"
    with pytest.raises(ConfigError, match="other holds something else"):
        go_on(RunConfig, run, changed)
    digest = content_digest("policy.checkpoint", [tmp_path / "was"])
    checkpoint_of(run, base_digest=digest)
    (tmp_path / "was").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="other holds something else"):
        go_on(RunConfig, run, changed)
    assert (run / "config.toml").read_text() == before
    gone = ["up", "--resume", str(run), "--set", f"policy.checkpoint={tmp_path / 'gone'}"]
    assert "there is no checkpoint folder" in CliRunner().invoke(app, gone).output
    go_on(RunConfig, run, f"policy.checkpoint={tmp_path / 'same'}")
    go_on(RunConfig, run, f"policy.checkpoint={tmp_path / 'moved'}")


@pytest.mark.torch
def test_the_same_weights_in_other_units_are_another_policy(tmp_path: Path) -> None:
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    small = {"image_size": 28, "tower_dim": 32, "text_dim": 64, "tower_depth": 2}
    make_tiny_checkpoint(tmp_path / "was", **small)
    chosen = (f"policy.checkpoint={tmp_path / 'was'}", 'unnorm_key="libero_object"')
    run = begun(RunConfig, tmp_path / "run", chosen)
    learned = meaning_terms(load_section(RunConfig, run / "config.toml"))
    shutil.copytree(tmp_path / "was", tmp_path / "larger")
    file = tmp_path / "larger/config.json"
    config = json.loads(file.read_bytes())
    for dataset in config["norm_stats"].values():
        dataset["action"]["q99"] = [10 * value for value in dataset["action"]["q99"]]
    file.write_text(json.dumps(config))
    elsewhere = f"policy.checkpoint={tmp_path / 'larger'}"
    with pytest.raises(ConfigError, match=r"began with action units = .* new run"):
        go_on(RunConfig, run, elsewhere)
    # Changed in place, the checkpoint alone knows what they were.
    checkpoint_of(run, terms=learned, base_digest="")
    (tmp_path / "was").rename(tmp_path / "aside")
    (tmp_path / "larger").rename(tmp_path / "was")
    with pytest.raises(ConfigError, match=r"has learned with action units = .* new run"):
        go_on(RunConfig, run)
    config = json.loads((tmp_path / "aside/config.json").read_bytes())
    config["center_crop"] = not config.get("center_crop", False)
    (tmp_path / "was/config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="has learned with centre crop = "):
        go_on(RunConfig, run)


@pytest.mark.torch
def test_the_same_weights_that_see_or_answer_otherwise_are_another_policy(tmp_path: Path) -> None:
    """What family.json says isn't among the weights, and neither is how proprioception counts."""
    from tests.integration.trainer.chunk_samples import make_chunk_checkpoint

    policy = make_chunk_checkpoint(tmp_path / "policy")
    chosen = (f"policy.checkpoint={policy}", 'unnorm_key="libero_object"')
    run = begun(RunConfig, tmp_path / "run", chosen)
    learned = meaning_terms(load_section(RunConfig, run / "config.toml"))
    checkpoint_of(run, terms=learned, base_digest="")
    go_on(RunConfig, run)
    file = policy / "family.json"
    saved = json.loads(file.read_bytes())
    for changes in ({"cameras": saved["cameras"][::-1]}, {"convention": "no_stop"}, {"chunk": 4}):
        file.write_text(json.dumps(saved | changes))
        with pytest.raises(ConfigError, match="has learned with policy family = "):
            go_on(RunConfig, run)
    file.write_text(json.dumps(saved))
    config = json.loads((policy / "config.json").read_bytes())
    config["norm_stats"]["libero_object"]["proprio"]["q99"][3] *= 2
    (policy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"has learned with action units = .*proprio"):
        go_on(RunConfig, run)


def test_a_suite_of_ones_own_keeps_its_scenes_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("was", "same", "other"):
        (tmp_path / name).mkdir()
        scene = "(define (problem one))" if name != "other" else "(define (problem two))"
        (tmp_path / name / "one.bddl").write_text(scene)
        (tmp_path / name / "one.init.npz").write_bytes(name.encode())
    suite = "env.bddl_directories.mine"
    begin = ('tasks.suite="mine"', f"{suite}={tmp_path / 'was'}")
    run = begun(RunConfig, tmp_path / "run", begin)
    with pytest.raises(ConfigError, match=r"began with scenes = .* are other tasks"):
        go_on(RunConfig, run, f"{suite}={tmp_path / 'other'}")
    go_on(RunConfig, run, f"{suite}={tmp_path / 'same'}")
    learned = meaning_terms(load_section(RunConfig, run / "config.toml"))
    checkpoint_of(run, terms=learned)
    (tmp_path / "same/two.bddl").write_text("(define (problem two))")
    with pytest.raises(ConfigError, match="has learned with scenes = "):
        go_on(RunConfig, run)


def test_a_stage_that_diverged_goes_on_as_it_is_told_to(tmp_path: Path) -> None:
    run = begun(SftConfig, tmp_path / "run", ("pretrain.steps=9",))
    go_on(SftConfig, run, "pretrain.learning_rate=1e-6", "pretrain.micro_batch=1")


def test_every_folder_whose_content_is_fixed_is_a_key() -> None:
    known = {key for root in ROOTS for key in kinds(root)}
    assert known >= CONTENTS


@pytest.mark.torch
def test_the_command_refuses_within_its_first_look(tmp_path: Path) -> None:
    run = begun(RunConfig, tmp_path / "run")
    before = (run / "config.toml").read_text()
    for command in ("up", "train"):
        arguments = [command, "--resume", str(run), "--set", "trainer.lora.rank=8"]
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == 1
        assert refused.output.startswith(f"error: {run} began with trainer.lora.rank = ")
        assert len(refused.output.strip().splitlines()) == 1
    assert (run / "config.toml").read_text() == before
    assert [path.name for path in run.iterdir()] == ["config.toml"]
