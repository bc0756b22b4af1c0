"""From an observation to the engine's input: prompt ids with image tokens, and the pixels.

Images arrive prepared (see `vlarl.images`) and travel as uint8, an eighth of the bytes of
the normalised towers' input; the model normalises them on its own device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalDataDict
from vllm.inputs.engine import MultiModalInput, mm_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldConfig,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptUpdate,
)
from vllm.multimodal.processing.context import TimingContext

from vlarl.models.openvla.config import OpenVLAConfig

_PIXELS = MultiModalBatchedField()


def engine_input(
    prompt_ids: Sequence[int],
    pixels: npt.NDArray[np.uint8],
    image_token_id: int,
    image_tokens: int,
    image_id: str,
) -> MultiModalInput:
    """One observation as vLLM takes it: `BOS | image tokens | text`.

    Args:
        prompt_ids: the text's ids, BOS first.
        pixels: uint8 [S, S, 3], prepared for the model.
        image_token_id: id that stands where the projector's output goes.
        image_tokens: number of these.
        image_id: name of the image in the engine's encoder cache; unique, as equal frames under
            two weight versions have different features.
    """
    bos, *text = prompt_ids
    item = MultiModalKwargsItem(
        {"pixels": MultiModalFieldElem(data=torch.from_numpy(pixels), field=_PIXELS)}
    )
    return mm_input(
        prompt_token_ids=[bos, *[image_token_id] * image_tokens, *text],
        mm_kwargs=MultiModalKwargsItems({"image": [item]}),
        mm_hashes={"image": [image_id]},
        mm_placeholders={"image": [PlaceholderRange(offset=1, length=image_tokens)]},
    )


class ProcessingInfo(BaseProcessingInfo):  # type: ignore[misc]
    """What vLLM asks about the model's images."""

    def openvla_config(self) -> OpenVLAConfig:
        """The checkpoint's own configuration."""
        return OpenVLAConfig.from_directory(self.model_id)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """One image, always."""
        return {"image": 1}

    def get_mm_max_tokens_per_item(
        self,
        seq_len: int,  # noqa: ARG002 - vLLM passes these by keyword
        mm_counts: Mapping[str, int],  # noqa: ARG002
    ) -> Mapping[str, int]:
        """Every image takes the same number of tokens."""
        return {"image": self.openvla_config().num_patches}


class DummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):  # type: ignore[misc]
    """The input with which vLLM measures the model's memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:  # noqa: ARG002
        """No text beside the image."""
        return ""

    def get_dummy_mm_data(
        self,
        seq_len: int,  # noqa: ARG002
        mm_counts: Mapping[str, int],
        mm_options: Mapping[str, MultiModalDummyOptions],  # noqa: ARG002
    ) -> MultiModalDataDict:
        """White images of the model's size."""
        size = self.info.openvla_config().spec.image_size
        return {"image": [np.full((size, size, 3), 255, np.uint8)] * mm_counts.get("image", 0)}


class EngineProcessor(BaseMultiModalProcessor[ProcessingInfo]):  # type: ignore[misc]
    """Turns vLLM's own dummy inputs into `engine_input`s; the server builds its inputs itself."""

    requires_tokenizer = False

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:  # noqa: ARG002
        """The input for one prompt and its image."""
        config = self.info.openvla_config()
        pixels = np.asarray(inputs.mm_data_items["image"].get(0), np.uint8)
        prompt = inputs.prompt or [0]
        return engine_input(prompt, pixels, config.pad_token_id, config.num_patches, "dummy")

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        raise NotImplementedError("apply builds the whole input")

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        raise NotImplementedError("apply builds the whole input")
