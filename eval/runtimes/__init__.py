"""Inference runtimes behind one interface, with the log-mel and the model settings that decoding needs.

Only the PyTorch runtimes import torch and transformers; all others run on a device without them.
"""
