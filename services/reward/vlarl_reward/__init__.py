"""The reward server: outcomes in, rewards out.

`models/base.py` is the seam: a reward model is whatever turns finished trajectories into scores.
`models/outcome.py` is the sparse one. `worker.py` feeds a scorer from the queue, `server.py` from
gRPC.
"""
