"""The instruction as prompt tokens."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from vlarl.errors import ConfigError
from vlarl.models.instructions import words_of
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.weights.whereabouts import pointer_sentence

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_SPACE = "▁"
_VERDICTS = (("▁no", "▁yes"), ("<0x00>", "<0x01>"))
"""Words where the vocabulary has them whole, else bytes that no prompt holds."""


class PromptBuilder:
    """Turns instructions into prompt ids with a checkpoint's own ``tokenizer.json``.

    ``bos_id`` is the first id of every prompt, ``space_id`` ("▁") the last.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        """Raises ConfigError where the tokenizer is missing, broken or not Llama-like."""
        config = OpenVLAConfig.from_directory(checkpoint)
        path = Path(checkpoint) / "tokenizer.json"
        if pointer := pointer_sentence(path):
            raise ConfigError(pointer)
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
        except Exception as error:  # what `tokenizers` raises has no class of its own
            raise ConfigError(f"cannot read {path}: {error}") from error
        # "</s>" in an instruction is text that somebody typed, not the end of the sequence.
        self._tokenizer.encode_special_tokens = True
        self._vicuna = config.vicuna_prompt
        self.bos_id = self._special_id("<s>", path)
        self.space_id = self._special_id(_SPACE, path)

    def text(self, instruction: str) -> str:
        """The prompt in words."""
        question = f"What action should the robot take to {words_of(instruction)}?"
        if self._vicuna:
            return f"{_VICUNA_SYSTEM} USER: {question} ASSISTANT:"
        return f"In: {question}\nOut:"

    def token_ids(self, instruction: str) -> list[int]:
        """Prompt ids: BOS first, "▁" last; the image's patches go between BOS and the rest."""
        ids: list[int] = self._tokenizer.encode(self.text(instruction)).ids
        if ids[0] != self.bos_id:
            ids = [self.bos_id, *ids]
        return ids if ids[-1] == self.space_id else [*ids, self.space_id]

    @property
    def verdict_ids(self) -> tuple[int, int]:
        """The ids by which a reward model says that an action leads nowhere, or somewhere.

        Raises:
            ConfigError: the vocabulary has neither these words nor single bytes.
        """
        for names in _VERDICTS:
            negative, positive = map(self._tokenizer.token_to_id, names)
            if negative is not None and positive is not None:
                return negative, positive
        raise ConfigError(f"the tokenizer has none of the pairs {_VERDICTS} for verdicts")

    def _special_id(self, token: str, path: Path) -> int:
        token_id: int | None = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ConfigError(f"{path} has no token {token!r}")
        return token_id
