"""The reward server: finished episodes in, rewards out.

`models/base.py` is the seam: a reward model turns trajectories into scores. `models/outcome.py` is
the sparse one, `models/process.py` the learned one, `models/registry.py` knows them by their
configuration. `worker.py` feeds the model from the queue, `server.py` from gRPC.
"""
