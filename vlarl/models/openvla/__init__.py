"""OpenVLA, exactly as its published checkpoints behave.

Without torch (numpy and Pillow; the prompt also needs ``tokenizers``)::

    from vlarl.models.openvla.family import OpenVLAFamily
    from vlarl.models.openvla.pixels import PixelNormalizer
    from vlarl.models.openvla.processor import Processor
    from vlarl.models.openvla.prompt import PromptBuilder
    from vlarl.models.openvla.tokens import ActionTokenizer
    from vlarl.models.statistics import to_simulator

With torch::

    from vlarl.weights.checkpoint import CheckpointReader, base_digest
    from vlarl.weights.merge import merged_tensors
    from vlarl.models.network import pad_prompts
    from vlarl.models.openvla.network import load_model
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

From an image to an action::

    family = OpenVLAFamily(checkpoint)
    processor = family.processor(family.spec.center_crop)
    pixels = PixelNormalizer.from_directory(checkpoint)(processor.frame(jpeg))
    prompt = processor.prompt("open the middle drawer of the cabinet")
    ids = ...  # the action tokens that the model answers with
    action = processor.actions(ids, family.spec.statistics("libero_goal"))

Whatever knows OpenVLA is here. Others get it from `vlarl.models.registry`, and may name its classes
as types. Making tiny checkpoints and adopting others' files are OpenVLA's own, and asked for here.

This package imports nothing itself, so that each user pays for what it uses.
"""
