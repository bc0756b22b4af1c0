"""Any Hugging Face image-text-to-text model as a process reward model, by its own processor.

    chat template [ image, "What action should the robot take to ...?" ]   x   y  ...  gripper
                                                       verdict after each: ^   ^   ^       ^

A policy's action bins are the last 256 words of the model's own vocabulary, as OpenVLA has them
(arXiv 2406.09246, section 3.2); the verdict is its word for yes or no, whichever is likelier.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from vlarl.errors import ConfigError
from vlarl.images import Frame, decode_image, prepare_image
from vlarl.models.instructions import words_of
from vlarl.models.network import pad_prompts
from vlarl.models.registry import scored_policy
from vlarl.models.spec import PolicySpec
from vlarl.weights.folder import CheckpointError

_VERDICTS = (("no", "yes"), ("No", "Yes"), ("0", "1"))


class ImageTextReader:
    """A model's processor: prompts from instructions, image inputs from frames."""

    def __init__(self, folder: Path, size: int) -> None:
        """Loads it.

        Args:
            folder: the model's.
            size: height and width of all frames, in pixels: how many tokens an image becomes.

        Raises:
            ConfigError: it can't be loaded, or lacks what is needed.
        """
        try:
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            self._tokenizer = self._processor.tokenizer
        except (OSError, ValueError, ImportError, AttributeError) as error:
            raise ConfigError(f"{folder}: its processor can't be loaded: {error}") from error
        if not self._processor.chat_template:
            raise ConfigError(f"{folder}: its processor has no chat template")
        self._folder = folder
        self._blank = np.zeros((size, size, 3), np.uint8)
        self.pad_id = int(self._special("pad_token_id", "eos_token_id"))
        self.verdict_ids = self._verdicts()
        self.vocab_size = self._tokenizer.vocab_size
        plain = self._processor(images=[self._blank], text=[self._text("")], return_tensors="pt")
        ids = plain["input_ids"]
        # Beside the ids some models want to be told of each token whether it is the image's.
        self._of_text = {key for key, value in plain.items() if value.shape == ids.shape}
        self._kinds = {
            key: {int(token): int(kind) for token, kind in zip(ids[0], plain[key][0], strict=True)}
            for key in sorted(self._of_text - {"input_ids", "attention_mask"})
        }

    def prompt(self, instruction: str) -> list[int]:
        """Ids of the prompt, the image's places among them."""
        read = self._processor(
            images=[self._blank], text=[self._text(instruction)], return_tensors="pt"
        )
        ids: list[int] = read["input_ids"][0].tolist()
        return ids

    def images(self, frames: Frame) -> dict[str, Tensor]:
        """What the model takes of uint8 [B, S, S, 3], by the names it gives it."""
        texts = [self._text("")] * len(frames)
        read = self._processor(images=list(frames), text=texts, return_tensors="pt")
        return {key: value for key, value in read.items() if key not in self._of_text}

    def kinds(self, token_ids: Tensor) -> dict[str, Tensor]:
        """What the model wants to know of each token of [B, L], by the names it gives it."""
        found = {}
        for key, kinds in self._kinds.items():
            found[key] = torch.zeros_like(token_ids)
            for token, kind in kinds.items():
                if kind:
                    found[key][token_ids == token] = kind
        return found

    def _text(self, instruction: str) -> str:
        for special in self._tokenizer.all_special_tokens:
            # Typed by somebody, "<image>" is no image.
            instruction = instruction.replace(special, " ")
        question = f"What action should the robot take to {words_of(instruction)}?"
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text

    def _special(self, *names: str) -> int:
        for name in names:
            if (found := getattr(self._tokenizer, name, None)) is not None:
                return int(found)
        raise ConfigError(f"{self._folder}: its tokenizer has no {' and no '.join(names)}")

    def _verdicts(self) -> tuple[int, int]:
        for words in _VERDICTS:
            found = [self._tokenizer.encode(word, add_special_tokens=False) for word in words]
            if all(len(ids) == 1 for ids in found):
                return found[0][0], found[1][0]
        raise ConfigError(f"{self._folder}: its tokenizer has none of the pairs {_VERDICTS} whole")


class ImageTextNetwork(nn.Module):
    """The model, its head cut down to the two words that are verdicts."""

    def __init__(
        self,
        folder: Path,
        reader: ImageTextReader,
        policy: PolicySpec,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Loads it.

        Args:
            folder: the model's.
            reader: its processor.
            policy: whose action tokens are scored.
            dtype: of the passes.
            device: where to.

        Raises:
            CheckpointError: it can't be loaded.
        """
        super().__init__()
        self.network = load_image_text(folder, dtype).to(device)
        self._reader = reader
        self._shift = reader.vocab_size - policy.action_ids.stop
        head = self.network.get_output_embeddings()
        answers = list(reader.verdict_ids)
        small = nn.Linear(
            head.in_features, 2, bias=head.bias is not None, dtype=dtype, device=device
        )
        small.weight.data = head.weight.data[answers].clone()
        if head.bias is not None:
            small.bias.data = head.bias.data[answers].clone()
        self.network.set_output_embeddings(small)

    def forward(
        self, frames: Frame, prompt_ids: Tensor, prompt_lengths: Tensor, token_ids: Tensor
    ) -> Tensor:
        """Logits [B, K + 1, 2], float32, of the two verdicts after 0 to K action tokens.

        Args:
            frames: uint8 [B, S, S, 3].
            prompt_ids: int64 [B, L], padded on the right.
            prompt_lengths: int64 [B].
            token_ids: int64 [B, K], the policy's.
        """
        (batch, longest), count = prompt_ids.shape, token_ids.shape[1]
        device = prompt_ids.device
        rows = torch.arange(batch, device=device)[:, None]
        after = prompt_lengths[:, None] + torch.arange(count, device=device)
        ids = torch.cat([prompt_ids, prompt_ids.new_full((batch, count), self._reader.pad_id)], 1)
        ids[rows, after] = token_ids + self._shift
        places = torch.arange(longest + count, device=device)
        images = self._reader.images(frames)
        logits: Tensor = self.network(
            input_ids=ids,
            attention_mask=(places < prompt_lengths[:, None] + count).long(),
            use_cache=False,
            **{key: value.to(device) for key, value in images.items()},
            **self._reader.kinds(ids),
        ).logits
        first = prompt_lengths[:, None] - 1
        return logits[rows, first + torch.arange(count + 1, device=device)].float()


class ImageTextReward:
    """A trained process reward model of this kind, with its processor."""

    def __init__(
        self, model: ImageTextNetwork, reader: ImageTextReader, policy: PolicySpec
    ) -> None:
        self.policy = policy
        self._model = model
        self._reader = reader

    @classmethod
    def load(cls, checkpoint: Path, dtype: torch.dtype, device: torch.device) -> ImageTextReward:
        """From CHECKPOINT, and CHECKPOINT/policy.

        Raises:
            ConfigError, CheckpointError: a part is missing or can't be used.
        """
        policy = scored_policy(checkpoint)
        reader = ImageTextReader(checkpoint, policy.image_size)
        return cls(ImageTextNetwork(checkpoint, reader, policy, dtype, device), reader, policy)

    def frame(self, encoded: bytes) -> Frame:
        return prepare_image(decode_image(encoded), self.policy.image_size, self.policy.center_crop)

    def prompt(self, instruction: str) -> list[int]:
        return self._reader.prompt(instruction)

    def verdicts(
        self, frames: Frame, prompts: Sequence[Sequence[int]], token_ids: NDArray[np.int64]
    ) -> Tensor:
        device = self._model.network.device
        ids, lengths = pad_prompts(prompts, self._reader.pad_id, device)
        logits: Tensor = self._model(frames, ids, lengths, torch.from_numpy(token_ids).to(device))
        return logits


def load_image_text(folder: Path, dtype: torch.dtype | str) -> Any:  # noqa: ANN401 - any of many
    """A model of the Hugging Face library, from safetensors alone, none of its own code run.

    Args:
        folder: the model's.
        dtype: of its weights; "auto": as they are stored.

    Raises:
        CheckpointError: it can't be loaded, or isn't whole.
    """
    logging.disable_progress_bar()
    try:
        model, found = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"{folder}: no image-text-to-text model: {error}") from error
    if missing := sorted(found["missing_keys"]):
        # The library would go on with random numbers.
        raise CheckpointError(f"{folder}: weights are missing: {', '.join(missing[:4])}")
    return model
