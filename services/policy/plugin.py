"""vLLM's entry into this package: the `vllm.general_plugins` entry point calls `register`.

vLLM calls it in every process that it starts, so the engine's workers know the model too.
"""


def register() -> None:
    """Puts our OpenVLA in the place of vLLM's, which is hard-wired to full-size towers."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(
        "OpenVLAForActionPrediction", "services.policy.model:OpenVLAForActionPrediction"
    )
