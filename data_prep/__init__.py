"""Audio in, pseudo-labelled shards out."""
