"""Imports PyTorch and Whisper's classes in half the time; each program that needs them imports this first.

Of 5.8 s that `from transformers import WhisperForConditionalGeneration` and the end of that process took one core,
1.0 were scikit-learn, which transformers imports where it is installed (nncf brings it) and of which nothing is used
here, 0.7 the garbage collector's while every object was there to stay, and 0.9 its last look at them all. Without
scikit-learn PyTorch's peak memory is 454 instead of 557 MB. Once this is imported, others may import it.
"""

import atexit
import gc
import sys


def _import_whisper() -> None:
    hidden = "sklearn" not in sys.modules
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]
    gc.disable()
    try:
        import transformers.models.whisper.modeling_whisper  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
        if hidden:
            del sys.modules["sklearn"]


_import_whisper()
atexit.register(gc.freeze)
