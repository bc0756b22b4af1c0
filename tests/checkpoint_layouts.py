"""How checkpoints lie on people's disks: whole ones in many layouts, and what breaks on the way.

Each layout changes a copy of a tiny checkpoint in place. Of the broken ones there is what has to
be said of them: the file or the thing that is wrong, and the way out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Layout = Callable[[Path], None]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4756256\n"
KEY = "libero_spatial_no_noops"


def configured(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes config.json."""
    content = json.loads((folder / "config.json").read_bytes().removeprefix(b"\xef\xbb\xbf"))
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes tensors."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def statistics(folder: Path, **changes: Any) -> None:  # noqa: ANN401 - any JSON
    """Leaves one dataset's, changed; `...` removes a key."""

    def change(config: dict[str, Any]) -> None:
        action = config["norm_stats"]["libero_spatial"]["action"] | changes
        kept = {key: value for key, value in action.items() if value is not ...}
        config["norm_stats"] = {"my_robot": {"action": kept}}

    configured(folder, change)


def beside(folder: Path, *config_keys: str) -> None:
    """Statistics beside config.json, which has those of other datasets or none."""
    one = json.loads((folder / "config.json").read_text())["norm_stats"]["libero_spatial"]
    proprio = {name: [0.0] * 8 for name in ("mean", "std", "q01", "q99")}
    own = {KEY: one | {"proprio": proprio, "num_transitions": 52970}}
    (folder / "dataset_statistics.json").write_text(json.dumps(own))
    configured(folder, lambda config: config.update(norm_stats=dict.fromkeys(config_keys, one)))
    configured(folder, lambda config: config.pop("center_crop"))


def merged_keys(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        one = config["norm_stats"]["libero_spatial"]
        config["norm_stats"] = {"bridge_orig": one, KEY: one}
        del config["center_crop"]

    configured(folder, change)


def sharded(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    keys = sorted(tensors)
    parts = (keys[: len(keys) // 2], keys[len(keys) // 2 :])
    for name, part in zip(SHARDS, parts, strict=True):
        save_file({key: tensors[key] for key in part}, folder / name, {"format": "pt"})
    named = {key: name for name, part in zip(SHARDS, parts, strict=True) for key in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": named}))


def linked(folder: Path) -> None:
    """The hub's cache: files are links to blobs."""
    blobs = folder.with_name(f"{folder.name}-blobs")
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{number:040x}")
        path.symlink_to(blobs / f"{number:040x}")


def remote_code(folder: Path) -> None:
    (folder / "modeling_prismatic.py").write_text("raise SystemExit('ran')  # NUM_ACTIONS_CHUNK\n")
    code = {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"}
    configured(folder, lambda config: config.update(auto_map=code))


def marked(folder: Path) -> None:
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())


def adapter_alone(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    named = {"peft_type": "LORA", "base_model_name_or_path": "openvla/openvla-7b", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(named))
    key = "base_model.model.language_model.lm_head.lora_A.weight"
    save_file({key: torch.zeros(2, 4)}, folder / "adapter_model.safetensors")


def unmerged(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[f"base_model.model.{key}"] = tensors.pop(key)

    weights(folder, change)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def cached(folder: Path) -> None:
    snapshot = folder / "snapshots" / "0123abcd"
    shutil.copytree(folder, snapshot)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def cut(folder: Path, name: str = WEIGHTS, missing: int = 100) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-missing] if missing > 0 else whole + b" " * -missing)


def without(*names: str) -> Layout:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def then(*layouts: Layout) -> Layout:
    def all_of_them(folder: Path) -> None:
        for layout in layouts:
            layout(folder)

    return all_of_them


def file(name: str, content: str) -> Layout:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


def tensor(key: str, value: torch.Tensor | None) -> Layout:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value

    return lambda folder: weights(folder, change)


def link(name: str) -> Layout:
    """A link to nowhere, as a cache leaves it from which a blob was removed."""

    def dangle(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / "gone")

    return dangle


def action(value: object) -> Layout:
    """Statistics with something else instead of an action's."""

    def change(config: dict[str, Any]) -> None:
        config["norm_stats"]["libero_spatial"]["action"] = value

    return lambda folder: configured(folder, change)


def config(**changes: Any) -> Layout:  # noqa: ANN401 - any JSON
    return lambda folder: configured(folder, lambda content: content.update(changes))


def index_names_more(folder: Path) -> None:
    sharded(folder)
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"]["language_model.more.weight"] = SHARDS[0]
    (folder / INDEX).write_text(json.dumps(content))


WHOLE: dict[str, Layout] = {
    "as it was made": lambda _: None,
    "statistics beside alone": beside,
    "the base's statistics in config.json": lambda folder: beside(folder, "bridge_orig"),
    "the base's and the suite's together": merged_keys,
    "shards": sharded,
    "bfloat16": lambda folder: weights(
        folder, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()})
    ),
    "links": linked,
    "remote code": remote_code,
    "byte-order marks": marked,
    "no mask": lambda folder: statistics(folder, mask=...),
    "quantiles alone": lambda folder: statistics(folder, mean=..., std=..., min=..., max=...),
    "a constant dimension": lambda folder: statistics(
        folder, q01=[-1, -1, 0, 0, 0, 0, 0], q99=[1, 1, 0, 0, 0, 0, 1]
    ),
    "eight dimensions": lambda folder: statistics(
        folder,
        **{key: [-1.0] * 8 for key in ("q01", "min")},
        **{key: [1.0] * 8 for key in ("q99", "max")},
        mask=[True] * 8,
    ),
    "a rotation table": tensor(
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(16)
    ),
    "an adapter beside the weights": lambda folder: save_file(
        {"base_model.model.x.lora_A.weight": torch.zeros(2, 4)},
        folder / "adapter_model.safetensors",
    ),
    "a chunk of one action": file("constants.py", "NUM_ACTIONS_CHUNK = 1\n"),
    "said to be plain": then(
        file("family.json", '{"family": "openvla"}'),
        file("constants.py", "NUM_ACTIONS_CHUNK = 8\n"),
    ),
    "a folder called as code": lambda folder: (folder / "old.py").mkdir(),
}

LM_HEAD = "language_model.lm_head.weight"
OFT = "is OpenVLA-OFT"
ADOPT = "checkpoint adopt {} OUT"
BROKEN: dict[str, tuple[Layout, list[str]]] = {
    "git lfs": (
        file(WEIGHTS, POINTER),
        [f"{WEIGHTS} is a Git LFS pointer", "run `git lfs pull`"],
    ),
    "git lfs: tokenizer": (file("tokenizer.json", POINTER), ["tokenizer.json is a Git LFS"]),
    "git lfs: config": (file("config.json", POINTER), ["config.json is a Git LFS", "git lfs pull"]),
    "git lfs: a shard": (
        then(sharded, file(SHARDS[1], POINTER)),
        [f"{SHARDS[1]} is a Git LFS pointer", "git lfs pull"],
    ),
    "cut": (cut, [f"{WEIGHTS} is cut short: it has ", "download it again"]),
    "cut in the header": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:900]),
        [f"{WEIGHTS} is cut short: it has 900 bytes of at least ", "download it again"],
    ),
    "empty": (file(WEIGHTS, ""), [f"{WEIGHTS} is cut short"]),
    "too long": (lambda folder: cut(folder, missing=-8), [WEIGHTS, "its header says"]),
    "a web page": (
        file(WEIGHTS, "<!DOCTYPE html><html>Not found</html>"),
        [f"{WEIGHTS} is no safetensors file", "download it again"],
    ),
    "a shard missing": (then(sharded, without(SHARDS[1])), [f"{SHARDS[1]} is missing"]),
    "a shard cut": (then(sharded, lambda folder: cut(folder, SHARDS[0])), [f"{SHARDS[0]} is cut"]),
    "index missing": (then(sharded, without(INDEX)), [f"{INDEX}, which", "checkpoint adopt"]),
    "index names more": (index_names_more, ["language_model.more.weight"]),
    "index broken": (
        then(sharded, file(INDEX, '{"weight_map": 3}')),
        [f"cannot read {{}}/{INDEX}"],
    ),
    "no weights": (without(WEIGHTS), [f"has neither {WEIGHTS} nor {INDEX}"]),
    "pickled": (pickled, ["pytorch_model.bin", "checkpoint adopt {} OUT`"]),
    "adapter alone": (
        adapter_alone,
        ["LoRA adapter alone", "openvla/openvla-7b", "checkpoint adopt {} OUT --base DIR`"],
    ),
    "not merged": (unmerged, ["base_model.model.", "merge_and_unload()"]),
    "a tensor missing": (tensor(LM_HEAD, None), [f"weights are missing: {LM_HEAD}"]),
    "a tensor too many": (tensor("extra.weight", torch.zeros(1)), ["extra.weight"]),
    "another shape": (
        tensor(LM_HEAD, torch.zeros(768, 64)),
        [f"{LM_HEAD} is [768, 64], by config.json [832, 64]"],
    ),
    "quantised": (
        tensor(LM_HEAD, torch.zeros(832, 64, dtype=torch.int8)),
        ["weights are quantised", "bfloat16"],
    ),
    "quantised where no name says so": (
        tensor("language_model.model.norm.weight", torch.zeros(64, dtype=torch.uint8)),
        ["weights are quantised (language_model.model.norm.weight is U8)", "bfloat16"],
    ),
    "a cache": (cached, ["the hub's cache", "name {}/snapshots/0123abcd"]),
    "a run": (
        then(cached, lambda folder: (folder / "snapshots/0123abcd").rename(folder / "checkpoint")),
        ["config.json is missing; {}/checkpoint has one"],
    ),
    "sentencepiece alone": (
        then(without("tokenizer.json"), file("tokenizer.model", "spm")),
        ["tokenizer.json is missing; tokenizer.model alone", "copy it from openvla/openvla-7b"],
    ),
    "no preprocessor": (
        without("preprocessor_config.json"),
        ["preprocessor_config.json is missing: copy it from"],
    ),
    "no statistics": (config(norm_stats={}), ["config.json: there are no norm_stats"]),
    "NaN": (
        lambda folder: statistics(folder, q99=[float("nan")] * 7),
        ["config.json: action statistics of 'my_robot': q99 has values that aren't finite"],
    ),
    "infinite": (
        lambda folder: statistics(folder, q01=[float("-inf")] * 7),
        ["'my_robot': q01 has values that aren't finite"],
    ),
    "beyond float32": (
        lambda folder: statistics(folder, q99=[1e39] * 7),
        ["'my_robot': q99 has values that aren't finite"],
    ),
    "null inside": (
        lambda folder: statistics(folder, q99=[None] * 7),
        ["'my_robot': q99 has values that aren't finite"],
    ),
    "crossed": (
        lambda folder: statistics(folder, q01=[1.0] * 7, q99=[1.0] * 3 + [0.5] * 4),
        ["'my_robot': q01 lies above q99 in dimension 3"],
    ),
    "null": (
        lambda folder: statistics(folder, q01=None, q99=None),
        ["'my_robot': q01 and q99 missing", "min and max are no substitute"],
    ),
    "one quantile": (lambda folder: statistics(folder, q01=...), ["'my_robot': q01 missing"]),
    "mask of words": (
        lambda folder: statistics(folder, mask=["false"] * 7),
        ["'my_robot': mask is true or false"],
    ),
    "no action": (action(None), ["'libero_spatial': there is null instead of a table"]),
    "a list of actions": (action([1]), ["'libero_spatial': there is [1] instead of a table"]),
    "text for an action": (action("q01"), ["""'libero_spatial': there is "q01" instead"""]),
    "a dataset of nothing": (
        config(norm_stats={"mine": None}),
        ["config.json: action statistics of 'mine': there is null instead of a table"],
    ),
    "a number beyond all": (
        lambda folder: statistics(folder, q99=[10**400] * 7),
        ["config.json: action statistics of 'my_robot': "],
    ),
    "no patches": (
        config(timm_model_kwargs=[{"patch_size": 0}] * 2),
        ["config.json: ", "modulo"],
    ),
    "a crop in words": (
        config(center_crop="false"),
        ["config.json: center_crop is 'false'; write true or false"],
    ),
    "dangling: statistics": (
        then(beside, link("dataset_statistics.json")),
        ["cannot read {}/dataset_statistics.json: ", "No such file"],
    ),
    "dangling: config": (link("config.json"), ["cannot read {}/config.json: ", "No such file"]),
    "dangling: index": (link(INDEX), [f"cannot read {{}}/{INDEX}: ", "No such file"]),
    "dangling: weights": (link(WEIGHTS), [f"{WEIGHTS} is missing"]),
    "dangling: preprocessor": (
        link("preprocessor_config.json"),
        ["cannot read {}/preprocessor_config.json: ", "No such file"],
    ),
    "dangling: code": (
        link("modeling_prismatic.py"),
        [
            "{}/modeling_prismatic.py: can't be read (No such file",
            "it may say that this is OpenVLA",
        ],
    ),
    "oft: heads": (
        then(beside, file("action_head--150000_checkpoint.pt", "")),
        [OFT, "(action_head--150000_checkpoint.pt)", "no log-probs", "use_l1_regression"],
    ),
    "oft: diffusion": (
        file("noisy_action_projector--latest_checkpoint.pt", ""),
        [OFT, "(noisy_action_projector--latest_checkpoint.pt)", "no log-probs", "use_diffusion"],
    ),
    "oft: FiLM": (
        file("vision_backbone--9_checkpoint.pt", ""),
        [OFT, "(vision_backbone--9_checkpoint.pt)", "FiLM", "use_film False"],
    ),
    "oft: proprioception": (
        file("proprio_projector--1_checkpoint.pt", ""),
        [
            *(OFT, "about 0 %"),
            f"{ADOPT} --chunk 8 --convention stop`, with the chunk that it was",
            "with --camera NAME for each image that it saw, the main one first",
        ],
    ),
    "oft: a chunk": (
        file("modeling_prismatic.py", "NUM_ACTIONS_CHUNK = 5  # parallel decoding\n"),
        [
            OFT,
            "NUM_ACTIONS_CHUNK in modeling_prismatic.py",
            f"{ADOPT} --chunk 5 --convention stop`, with --camera NAME for each image that it saw",
        ],
    ),
    "oft: by its name": (
        config(_name_or_path="Haozhan72/Openvla-oft-SFT-libero10-trajall"),
        [OFT, "(by the name Haozhan72/Openvla-oft-SFT-libero10-trajall)", "if it is plain, say"],
    ),
    "oft: a chunk from elsewhere": (
        file("modeling_prismatic.py", "from constants import (\n    NUM_ACTIONS_CHUNK,\n)\n"),
        [OFT, "NUM_ACTIONS_CHUNK in modeling_prismatic.py"],
    ),
    "oft: chunks of platforms": (
        file("constants.py", 'LIBERO = {\n    "NUM_ACTIONS_CHUNK": 8,\n}\n'),
        [OFT, "NUM_ACTIONS_CHUNK in constants.py"],
    ),
    "oft: in config.json": (config(num_actions_chunk=8), [OFT, "num_actions_chunk = 8"]),
}


def lay_out(tiny: Path, folder: Path, layout: Layout) -> Path:
    """A copy of a tiny checkpoint in a layout."""
    shutil.copytree(tiny, folder)
    layout(folder)
    return folder
