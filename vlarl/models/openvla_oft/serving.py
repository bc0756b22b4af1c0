"""How vLLM runs OpenVLA-OFT: one chunk is one pooling request."""
