"""Decoding over any runtime: clips, long recordings, files, speculative drafts, timestamps, word times, subtitles."""
