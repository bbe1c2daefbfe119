"""The trainer: objective, teacher outputs, optimiser, distribution strategies, validation and checkpoints."""
