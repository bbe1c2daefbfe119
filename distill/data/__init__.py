"""Training data: examples sampled from labels, batches and their order, and vocabulary maps for trimmed students."""
