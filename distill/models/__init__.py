"""Whisper models as objects and folders: cutting layers, saving, counting parameters, random weights."""
