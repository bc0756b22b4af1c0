"""From an observation to the engine's input: `vlarl.models.openvla.vllm_inputs` for chunks.

    BOS | patches of each image | [proprioception] | prompt ... "▁" | n placeholders | [stop]

All images and the proprioception of an observation are one item, whose tokens stand in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.inputs.engine import MultiModalInput, mm_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.multimodal.processing import ProcessorInputs
from vllm.multimodal.processing.context import TimingContext

from vlarl.images import Frame
from vlarl.models.openvla.vllm_inputs import EngineProcessor, ProcessingInfo
from vlarl.models.openvla_oft.config import STOP_ID, OFTConfig

_FIELD = MultiModalBatchedField()


def item_tokens(config: OFTConfig) -> int:
    """Tokens of an observation's images and proprioception."""
    return config.num_patches + bool(config.spec.proprio_dim)


def chunk_input(
    config: OFTConfig,
    prompt_ids: Sequence[int],
    pixels: Frame,
    proprio: NDArray[np.float64] | None,
    name: str,
) -> MultiModalInput:
    """One observation as vLLM takes it.

    Args:
        config: the checkpoint's.
        prompt_ids: the text's ids, BOS first.
        pixels: uint8 [I, S, S, 3], prepared for the model.
        proprio: normalised [P], where the policy reads it.
        name: of the observation in the engine's encoder cache; unique, as equal frames under two
            weight versions have different features.
    """
    (bos, *text), tokens = prompt_ids, item_tokens(config)
    given = {"pixels": torch.from_numpy(pixels)}
    if proprio is not None:
        given["proprio"] = torch.from_numpy(proprio.astype(np.float32))
    item = MultiModalKwargsItem(
        {key: MultiModalFieldElem(data=one, field=_FIELD) for key, one in given.items()}
    )
    ids = [bos, *[config.base.pad_token_id] * tokens, *text]
    ids += [config.placeholder_id] * config.spec.tokens
    if config.convention == "stop":
        ids.append(STOP_ID)
    return mm_input(
        prompt_token_ids=ids,
        mm_kwargs=MultiModalKwargsItems({"image": [item]}),
        mm_hashes={"image": [name]},
        mm_placeholders={"image": [PlaceholderRange(offset=1, length=tokens)]},
    )


class ChunkProcessingInfo(ProcessingInfo):
    """What vLLM asks about the model's observations."""

    def oft_config(self) -> OFTConfig:
        """The checkpoint's own configuration."""
        return OFTConfig.from_directory(self.model_id)

    def get_mm_max_tokens_per_item(
        self,
        seq_len: int,  # noqa: ARG002 - vLLM passes these by keyword
        mm_counts: Mapping[str, int],  # noqa: ARG002
    ) -> Mapping[str, int]:
        """Every observation takes the same number of tokens."""
        return {"image": item_tokens(self.oft_config())}


class ChunkEngineProcessor(EngineProcessor):
    """Turns vLLM's own dummy inputs into `chunk_input`s; the server builds its inputs itself."""

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:  # noqa: ARG002
        """The input for one prompt, of whose images each camera sees the first."""
        config = self.info.oft_config()
        frame = np.asarray(inputs.mm_data_items["image"].get(0), np.uint8)
        pixels = np.stack([frame] * len(config.spec.cameras))
        width = config.spec.proprio_dim
        return chunk_input(
            config, inputs.prompt or [0], pixels, np.zeros(width) if width else None, "dummy"
        )
