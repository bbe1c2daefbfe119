"""Error rates: what is transcribed, how errors are counted, and their intervals and p values."""
