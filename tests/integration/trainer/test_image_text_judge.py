"""A Hugging Face image-text model as the judge: what it says, learns and leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from typer.testing import CliRunner  # noqa: E402

from tests.integration.reward.test_process_reward import trajectory  # noqa: E402
from tests.integration.trainer.demonstrated import write_dataset  # noqa: E402
from tests.integration.trainer.image_text_models import tiny_llava  # noqa: E402
from tests.integration.trainer.test_reward_training import config_for, demonstrations  # noqa: E402
from vlarl.config import PpoConfig, ProcessRewardConfig, RewardModelConfig, save_config  # noqa: E402
from vlarl.errors import ConfigError  # noqa: E402
from vlarl.json_lines import read_lines  # noqa: E402
from vlarl.launch.torchrun import ranks_command  # noqa: E402
from vlarl.models.process_reward.image_text import ImageTextReader, load_image_text  # noqa: E402
from vlarl.models.process_reward.model import ProcessRewardModel  # noqa: E402
from vlarl.weights.checkpoint import CheckpointReader, NotFiniteError  # noqa: E402
from vlarl.weights.folder import CheckpointError  # noqa: E402
from vlarl_cli import app  # noqa: E402
from vlarl_jobs.reward_model.image_text import export_image_text, language_layers  # noqa: E402
from vlarl_jobs.reward_model.main import run  # noqa: E402
from vlarl_reward.models.process import ProcessReward  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]
FIRST_ACTION = 512
FIRST_WORD = 344
"""Where actions begin in the tiny model's vocabulary of 600 words."""
LAYERS = 2 * 7


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("llava") / "model")


@pytest.fixture
def judge_folder(llava: Path, checkpoint: Path, tmp_path: Path) -> Path:
    """The untrained model as a judge of the tiny policy."""
    folder = tmp_path / "judge"
    shutil.copytree(llava, folder)
    (folder / "policy").mkdir()
    shutil.copy(checkpoint / "config.json", folder / "policy")
    (folder / "reward_model.json").write_text('{"version": "abc"}')
    return folder


def image_text_config(llava: Path, policy: Path, *datasets: Path, **changes: object) -> object:
    return config_for(llava, *datasets, policy=policy, mode="lora", **changes)


def test_verdicts_are_the_librarys_own_next_tokens(judge_folder: Path) -> None:
    """One action after another, unpadded, through the whole model with its whole head."""
    drawn = np.random.default_rng(0)
    frames = drawn.integers(256, size=(3, 28, 28, 3), dtype=np.uint8)
    actions = FIRST_ACTION + drawn.integers(256, size=(3, 7), dtype=np.int64)
    judge = ProcessRewardModel(judge_folder, batch=2)
    texts = ["open the drawer", "go", "put the <image> bowl on the plate"]
    prompts = [judge.prompt(text) for text in texts]
    assert len({len(prompt) for prompt in prompts}) == 3
    said = judge.probabilities(frames, prompts, actions)
    of_states = judge.probabilities(frames, prompts, actions[:, :0])

    model, reader = load_image_text(judge_folder, torch.float32), ImageTextReader(judge_folder, 28)
    no, yes = reader.verdict_ids
    assert reader._tokenizer.convert_ids_to_tokens([no, yes]) == ["no", "yes"]
    for one in range(3):
        taken = (actions[one] - FIRST_ACTION + FIRST_WORD).tolist()
        pixels = reader._processor.image_processor([frames[one]], return_tensors="pt")
        for tokens, found in ((taken, said), ([], of_states)):
            ids = torch.tensor([prompts[one] + tokens])
            with torch.inference_mode():
                logits = model(input_ids=ids, pixel_values=pixels["pixel_values"]).logits[0, -1]
            expected = float(torch.sigmoid(logits[yes] - logits[no]))
            assert found[one] == pytest.approx(expected, abs=1e-6)
    assert np.ptp(said) > 1e-4
    assert prompts[2].count(reader._tokenizer.convert_tokens_to_ids("<image>")) == 4, (
        "a frame of 28 pixels is four patches, and a typed <image> none"
    )


def test_it_learns_and_is_served(llava: Path, checkpoint: Path, tmp_path: Path) -> None:
    shown = write_dataset(tmp_path / "shown", demonstrations())
    config = image_text_config(llava, checkpoint, shown)
    assert isinstance(config, RewardModelConfig)
    (tmp_path / "run").mkdir()
    run(config, tmp_path / "run")
    made = tmp_path / "run/checkpoint"
    card = json.loads((made / "reward_model.json").read_text())
    assert card["held_out"]["auc"] > 0.9
    # What was merged and written says what the trained factors said.
    lines = [line for line in read_lines(tmp_path / "run/metrics.jsonl") if "held_out_auc" in line]
    last = lines[-1]  # those weights are exported
    assert card["held_out"]["auc"] == pytest.approx(last["held_out_auc"], abs=1e-4)
    assert card["held_out"]["accuracy"] == pytest.approx(last["held_out_accuracy"], abs=1e-4)
    before, after = CheckpointReader(llava), CheckpointReader(made)
    assert list(before) == list(after)
    changed = [key for key in before if not torch.equal(before.tensor(key), after.tensor(key))]
    assert len(changed) == LAYERS
    assert all("language_model" in key for key in changed)

    one = trajectory(5)
    reward = {"model": "rprm", "checkpoint": made, "coefficient": 0.5, "dtype": "float32"}
    (scores,) = ProcessReward(ProcessRewardConfig.model_validate(reward), PpoConfig()).score([one])
    judge = ProcessRewardModel(made)
    frames = np.stack([judge.frame(step.image) for step in one.steps])
    tokens = np.array([step.action.token_ids for step in one.steps], np.int64)
    expected = judge.probabilities(frames, [judge.prompt(one.instruction)] * 5, tokens)
    assert list(scores.dense) == pytest.approx(expected.tolist(), abs=1e-6)
    assert scores.version == card["version"]


def test_factors_that_are_not_finite_are_not_merged_into_a_checkpoint(
    llava: Path, checkpoint: Path, tmp_path: Path
) -> None:
    config = image_text_config(llava, checkpoint, tmp_path)
    model = load_image_text(llava, torch.float32)
    layers = language_layers(model)
    factors = {}
    for layer in layers:
        out, into = model.get_parameter(f"{layer}.weight").shape
        factors |= {f"{layer}.A": torch.ones(1, into), f"{layer}.B": torch.zeros(out, 1)}
    factors[f"{layers[-1]}.B"][3] = float("inf")
    with pytest.raises(NotFiniteError, match=f"{layers[-1]}.weight has numbers"):
        export_image_text(config, tmp_path / "out", factors, lambda _: None)
    assert not any(tmp_path.iterdir())


def test_two_ranks_learn_what_one_learns(llava: Path, checkpoint: Path, tmp_path: Path) -> None:
    shown = write_dataset(tmp_path / "shown", demonstrations(episodes=6))
    fit = {"steps": 3, "mini_batch": 6, "micro_batch": 2, "evaluate_every": 3}
    lines = []
    for ranks in (1, 2):
        directory = tmp_path / str(ranks)
        config = image_text_config(
            llava, checkpoint, shown, training=fit, activation_checkpointing=True
        )
        save_config(config, directory)  # type: ignore[arg-type]
        program = ["-m", "vlarl", "reward", "train", "--resume", str(directory)]
        subprocess.run([*ranks_command(ranks), *program], check=True, timeout=200)
        lines.append(list(read_lines(directory / "metrics.jsonl")))
    alone, together = lines
    for name in ("loss", "grad_norm", "held_out_loss"):
        assert together[-1][name] == pytest.approx(alone[-1][name], rel=1e-4), name
    expected, got = (CheckpointReader(tmp_path / name / "checkpoint") for name in ("1", "2"))
    for key in expected:
        torch.testing.assert_close(got.tensor(key), expected.tensor(key), atol=1e-3, rtol=1e-3)


def test_what_does_not_go_together_is_refused(
    llava: Path, checkpoint: Path, judge_folder: Path, tmp_path: Path
) -> None:
    shown = write_dataset(tmp_path / "shown", demonstrations())
    for changes, says in (
        ({"policy": None}, "name the one whose actions are judged in `policy`"),
        ({"mode": "full"}, 'set mode = "lora"'),
        ({"checkpoint": checkpoint}, "an OpenVLA judges its own action tokens"),
        ({"checkpoint": tmp_path / "none"}, "there is no checkpoint folder"),
    ):
        config = image_text_config(llava, checkpoint, shown)
        assert isinstance(config, RewardModelConfig)
        save_config(config.model_copy(update=changes), tmp_path / "settings")
        arguments = ["reward", "train", str(tmp_path / "settings/config.toml")]
        refused = CliRunner().invoke(app, [*arguments, "--run-dir", str(tmp_path / "run")])
        assert refused.exit_code == 1
        assert says in refused.output.replace("\n", " ")
        assert not (tmp_path / "run").exists()
    (judge_folder / "policy/config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        ProcessRewardModel(judge_folder)
    shutil.rmtree(judge_folder / "policy")
    with pytest.raises(ConfigError, match="policy/, which says"):
        ProcessRewardModel(judge_folder)
    (llava / "processor_config.json").rename(tmp_path / "processor_config.json")
    try:
        with pytest.raises(ConfigError, match="its processor"):
            ImageTextReader(llava, 28)
    finally:
        (tmp_path / "processor_config.json").rename(llava / "processor_config.json")
    shutil.copytree(llava, tmp_path / "torn")
    torn = CheckpointReader(llava)
    kept = {key: torn.tensor(key) for key in torn if "layers.1.mlp" not in key}
    from vlarl.weights.checkpoint import save_tensors

    save_tensors(tmp_path / "torn", kept.items())
    with pytest.raises(CheckpointError, match="weights are missing"):
        load_image_text(tmp_path / "torn", torch.float32)
