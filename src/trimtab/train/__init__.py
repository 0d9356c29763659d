"""The only loop, its optimiser, checkpoints and control values."""
