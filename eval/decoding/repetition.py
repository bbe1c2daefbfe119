"""Detection of texts that repeat themselves, as a decoder in a loop writes them."""

from collections.abc import Sequence


def count_repeats(words: Sequence[str]) -> int:
    """Return how many times in a row a group of one to four words is repeated at most.

    The result is 1 for a text without repetitions and 0 for an empty one.
    """
    most = 1 if words else 0
    for size in range(1, 5):
        run = size  # length in words of the current stretch with period `size`
        for index in range(size, len(words)):
            run = run + 1 if words[index] == words[index - size] else size
            most = max(most, run // size)
    return most
