"""Training losses: knowledge distillation on the decoder's tokens, and an auxiliary CTC loss on the encoder."""
