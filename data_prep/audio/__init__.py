"""Audio: reading a corpus, splitting and packing recordings, augmentation, and log-mel features in torch."""
