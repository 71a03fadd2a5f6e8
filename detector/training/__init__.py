"""Training: targets, loss, optimizer, loop, checkpoints."""
