"""Which recordings are held out where a source has no test or validation split."""

from collections import Counter

from data_prep.audio.corpus_reading import hold_out
from eval.audio.utterances import Utterance
from recipes.schema.corpus_section import CorpusSection


def utterance(source: str, number: int, split: str = "train", piece: str = "") -> Utterance:
    name = f"{source}/{split}/{number:04}.wav{piece}"
    return Utterance(name, source, split, [f"{number}.wav{piece}"], 1.0, None, None, None, [name], [1.0], "")


def corpus(**options: float) -> CorpusSection:
    return CorpusSection(sources=[{"audio": "clips"}], **options)  # type: ignore[list-item, arg-type]


def splits(utterances: list[Utterance]) -> Counter[str]:
    return Counter(item.split for item in utterances)


def test_a_fraction_is_held_out_for_testing_and_the_choice_is_stable() -> None:
    items = [utterance("a", number) for number in range(1000)]
    held = hold_out(items, {"a": {"train"}}, corpus(test_fraction=0.1, validation_fraction=0.05))
    assert splits(held)["test"] == 100
    assert 20 < splits(held)["validation"] < 80
    fewer = hold_out(items[:500], {"a": {"train"}}, corpus(test_fraction=0.2, validation_fraction=0.05))
    before = {item.id for item in held if item.split == "test"}
    assert before & {item.id for item in items[:500]} <= {item.id for item in fewer if item.split == "test"}


def test_a_source_with_a_test_split_keeps_it_and_others_get_one() -> None:
    items = (
        [utterance("a", n) for n in range(20)] + [utterance("a", 20, "test")] + [utterance("b", n) for n in range(20)]
    )
    held = hold_out(items, {"a": {"train", "test"}, "b": {"train"}}, corpus(test_fraction=0.2))
    assert [item.id for item in held if item.source == "a" and item.split == "test"] == [items[20].id]
    assert splits([item for item in held if item.source == "b"])["test"] == 4


def test_a_few_recordings_give_one_for_testing_and_one_for_validation() -> None:
    held = hold_out([utterance("a", n) for n in range(3)], {"a": {"train"}}, corpus(test_fraction=0.01))
    assert splits(held) == {"train": 1, "validation": 1, "test": 1}


def test_the_pieces_of_a_recording_stay_together() -> None:
    items = [utterance("a", n, piece=f"#t={start},{start + 1}") for n in range(10) for start in range(3)]
    held = hold_out(items, {"a": {"train"}}, corpus(test_fraction=0.3))
    by_recording = {number: {item.split for item in held if f"/{number:04}." in item.id} for number in range(10)}
    assert all(len(found) == 1 for found in by_recording.values())
    assert splits(held)["test"] == 9


def test_without_fractions_nothing_moves() -> None:
    items = [utterance("a", n) for n in range(10)]
    assert hold_out(items, {"a": {"train"}}, corpus(validation_fraction=0)) == items
