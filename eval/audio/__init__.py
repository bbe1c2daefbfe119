"""Audio: references to recordings, decoding to 16 kHz samples, noise, metadata files and the table of utterances."""
