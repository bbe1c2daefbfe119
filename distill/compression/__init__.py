"""Methods that make a trained student smaller: a shorter window, fewer tokens, structured pruning, low-rank layers."""
