"""Texts that repeat themselves, as decoders do that have lost the thread."""

from collections.abc import Sequence


def count_repeats(words: Sequence[str]) -> int:
    """Most times in a row that one group of one to four words stands; 1 for a text that never repeats itself."""
    most = 1 if words else 0
    for size in range(1, 5):
        run = size
        for index in range(size, len(words)):
            run = run + 1 if words[index] == words[index - size] else size
            most = max(most, run // size)
    return most
