"""OpenVLA-OFT with discrete tokens: a chunk of control steps from one pass that sees all tokens.

Towers, projector, Llama, tokens, prompt and statistics are OpenVLA's, from `vlarl.models.openvla`.
Here is what differs. This package imports nothing itself.
"""
