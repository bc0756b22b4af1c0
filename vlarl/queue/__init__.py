"""Episodes out, trajectories back."""
