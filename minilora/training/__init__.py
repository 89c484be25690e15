"""Tasks, batches, one loop, checkpoints, evaluation."""
