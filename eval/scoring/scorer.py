"""Everything counted of one system's texts, beside the teacher's texts of the same audio."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from eval.decoding.repetition import count_repeats
from eval.scoring.conditions import Condition, clips_by_test_set
from eval.scoring.error_rates import ErrorCounts, Normalize, count_errors, macro_bootstrap, permutation_test
from eval.scoring.evaluate_metric import ErrorRate
from recipes.schema.eval_section import EvalSection

Texts = Mapping[str, Sequence[str]]
"""A system's texts by condition, as it wrote them."""

KINDS = ("substitutions", "deletions", "insertions")
WORST = 10
FEW = 5
"""Recordings below which there is no interval: resampling two tells nothing."""
LOOP = 3
"""A clip loops where a group of up to four words stands so often in a row, and oftener than in the reference."""


@dataclass(frozen=True)
class Scorer:
    """Counts with the recipe's normaliser, resamples and seed."""

    section: EvalSection
    seed: int
    normalize: Normalize

    def short_form(self, test: Condition, mine: Texts, teachers: Texts | None) -> dict[str, Any]:
        """Each test set, and the unweighted mean over the sets; the teacher itself is compared with nothing."""
        places = clips_by_test_set(test.clips)
        counted = [self._errors(test, mine[""], characters=characters) for characters in (False, True)]
        words, characters = ([errors.take(chosen) for chosen in places.values()] for errors in counted)
        said, references = self._normal(mine[""]), self._normal([clip.text for clip in test.clips])
        others = None
        if teachers is not None:
            others = [self._errors(test, teachers[""]).take(chosen) for chosen in places.values()]
        results = {
            name: {
                "wer": self._interval([words[index]]),
                "cer": self._interval([characters[index]]),
                "utterances": len(chosen),
                **self._counts([said[place] for place in chosen], [references[place] for place in chosen]),
                "versus_teacher": self._difference([words[index]], others[index : index + 1] if others else None),
            }
            for index, (name, chosen) in enumerate(places.items())
        }
        intervals = {"wer": self._interval(words), "cer": self._interval(characters)}
        return {
            "results": results,
            "macro": {rate: interval["value"] for rate, interval in intervals.items()},
            "macro_intervals": {**intervals, "versus_teacher": self._difference(words, others)},
        }

    def regression(self, test: Condition, mine: Texts, teachers: Texts) -> dict[str, Any]:
        """Shares of clips with more and with fewer errors than the teacher's, and those that lost most."""
        references = self._normal([clip.text for clip in test.clips])
        said, taught = self._normal(mine[""]), self._normal(teachers[""])
        own, others = count_errors(references, said).total, count_errors(references, taught).total
        lost = own - others
        # The worst by words lost, then by how few words there were to lose.
        order = sorted(np.flatnonzero(lost > 0).tolist(), key=lambda index: (-lost[index], len(references[index])))
        return {
            "clips": len(lost), "worse": float((lost > 0).mean()), "better": float((lost < 0).mean()),
            "worst": [
                {"id": test.clips[index].id, "set": test.clips[index].set, "reference": references[index],
                 "teacher": taught[index], "text": said[index], "errors": int(own[index]),
                 "teacher_errors": int(others[index]), "words": len(references[index].split())}
                for index in order[:WORST]
            ],
        }  # fmt: skip

    def hallucination(self, test: Condition, alone: Condition | None, mine: Texts) -> dict[str, Any]:
        """Words added to speech, texts that loop, and words where nobody speaks."""
        errors = self._errors(test, mine[""])
        none = np.zeros_like(errors.units)
        said, references = self._normal(mine[""]), self._normal([clip.text for clip in test.clips])
        loops = [
            index
            for index, (text, reference) in enumerate(zip(said, references, strict=True))
            if count_repeats(text.split()) >= LOOP and count_repeats(text.split()) > count_repeats(reference.split())
        ]
        return {
            "insertion_rate": self._interval([replace(errors, substitutions=none, deletions=none)]),
            "loops": len(loops), "clips": len(said),
            "looping": [{"id": test.clips[index].id, "reference": references[index], "text": said[index]}
                        for index in loops[:WORST]],
            "alone": self._alone(alone, mine) if alone else None,
        }  # fmt: skip

    def _alone(self, alone: Condition, mine: Texts) -> dict[str, Any]:
        said = self._normal(mine[alone.name])
        words = [len(text.split()) for text in said]
        minutes = sum(clip.seconds for clip in alone.clips) / 60
        return {
            "clips": len(said), "with_words": sum(count > 0 for count in words), "words": sum(words),
            "words_per_minute": sum(words) / minutes,
            "texts": [{"clip": clip.id, "text": text} for clip, text in zip(alone.clips, said, strict=True)],
        }  # fmt: skip

    def noise(
        self, test: Condition, conditions: Sequence[Condition], mine: Texts, teachers: Texts | None
    ) -> list[dict[str, Any]]:
        """The same utterances without noise and at each ratio: macro WER over the test sets."""
        parts = conditions[0].parts
        quiet = Condition("", [test.clips[index] for index in parts], parts=parts)
        rows = []
        for condition in (quiet, *conditions):
            own, others = (self._by_set(condition, texts) if texts else None for texts in (mine, teachers))
            assert own is not None
            inserted = sum(int(errors.insertions.sum()) for errors in own)
            rows.append({
                "snr_db": condition.snr_db, "wer": self._interval(own), "versus_teacher": self._difference(own, others),
                "insertion_rate": 100 * inserted / max(1, sum(int(errors.units.sum()) for errors in own)),
            })  # fmt: skip
        return rows

    def long_form(self, conditions: Sequence[Condition], mine: Texts) -> dict[str, Any]:
        """By test set and mode; beside it, of joined recordings, their utterances transcribed one by one."""
        found: dict[str, Any] = {}
        clips = conditions[0].clips
        heard = {str(condition.mode): mine[condition.name] for condition in conditions}
        if clips[0].parts:
            heard["separate"] = [" ".join(mine[""][part] for part in clip.parts) for clip in clips]
        for mode, texts in heard.items():
            errors = self._errors(conditions[0], texts)
            for name, places in clips_by_test_set(clips).items():
                row = errors.take(places)
                found.setdefault(name, {})[mode] = {
                    "wer": {"value": row.rate, "low": None, "high": None}
                    if len(places) < FEW
                    else self._interval([row]),
                    "words": int(row.units.sum()),
                    **{kind: int(getattr(row, kind).sum()) for kind in KINDS},
                }  # fmt: skip
        return found

    @staticmethod
    def _counts(said: Sequence[str], references: Sequence[str]) -> dict[str, int]:
        counted = ErrorRate("wer", keep_in_memory=True).compute(predictions=said, references=references)
        assert counted is not None
        return {"words": counted["units"], **{kind: counted[kind] for kind in KINDS}}

    def _normal(self, texts: Sequence[str]) -> list[str]:
        return [self.normalize(text) for text in texts]

    def _errors(self, condition: Condition, texts: Sequence[str], *, characters: bool = False) -> ErrorCounts:
        references = self._normal([clip.text for clip in condition.clips])
        return count_errors(references, self._normal(texts), characters=characters)

    def _by_set(self, condition: Condition, texts: Texts) -> list[ErrorCounts]:
        """Of a part of the test set; under no noise its texts are those of the whole."""
        said = texts[condition.name] if condition.name else [texts[""][index] for index in condition.parts]
        errors = self._errors(condition, said)
        return [errors.take(places) for places in clips_by_test_set(condition.clips).values()]

    def _interval(self, sets: Sequence[ErrorCounts]) -> dict[str, float]:
        return asdict(macro_bootstrap(sets, resamples=self.section.bootstrap, seed=self.seed))

    def _difference(self, sets: Sequence[ErrorCounts], others: Sequence[ErrorCounts] | None) -> dict[str, float] | None:
        if others is None:
            return None
        apart = macro_bootstrap(sets, others, resamples=self.section.bootstrap, seed=self.seed)
        return {**asdict(apart), "p_value": permutation_test(sets, others, seed=self.seed)}
