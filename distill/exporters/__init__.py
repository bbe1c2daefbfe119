"""Exporters of a student to the files of each runtime, and their comparison with PyTorch on real audio."""
