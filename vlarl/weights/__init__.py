"""Checkpoints on disk, adapters on the wire."""
