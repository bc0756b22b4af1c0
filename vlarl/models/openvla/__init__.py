"""OpenVLA, exactly as its published checkpoints behave.

Without torch (numpy and Pillow; the prompt also needs ``tokenizers``)::

    from vlarl.models.openvla.config import OpenVLAConfig
    from vlarl.images import decode_image, prepare_image
    from vlarl.models.openvla.pixels import PixelNormalizer
    from vlarl.models.openvla.prompt import PromptBuilder
    from vlarl.models.openvla.tokens import ActionTokenizer
    from vlarl.models.statistics import to_simulator

With torch::

    from vlarl.weights.checkpoint import CheckpointReader, base_digest
    from vlarl.models.openvla.lora import lora_layers
    from vlarl.weights.merge import merged_tensors
    from vlarl.models.openvla.network import load_model, pad_prompts
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

From an image to an action::

    config = OpenVLAConfig.from_directory(checkpoint)
    frame = prepare_image(decode_image(jpeg), config.image_size, config.center_crop)
    pixels = PixelNormalizer.from_directory(checkpoint)(frame)
    prompt = PromptBuilder(checkpoint).token_ids("open the middle drawer of the cabinet")
    ids = ...  # the action tokens that the model answers with
    values = ActionTokenizer(config.action_vocab_size).decode(ids)
    action = config.statistics("libero_goal").unnormalize(values)

This package imports nothing itself, so that each user pays for what it uses.
"""
