"""What learns from samples: steps, ranks, checkpoints, logs."""
