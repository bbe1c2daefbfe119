"""Score the texts of one system, and compare them with the teacher's texts of the same audio."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.decoding.repetition import count_repeats
from eval.decoding.systems import System
from eval.scoring.accuracy_rows import (
    AccuracyRow,
    HallucinationScore,
    Interval,
    LongFormScore,
    LoopingClip,
    MacroIntervals,
    MacroScore,
    NoiseScore,
    NoSpeechScore,
    NoSpeechText,
    OptionalInterval,
    PairedDifference,
    RegressionScore,
    SetScore,
    WorseClip,
)
from eval.scoring.conditions import Condition, EvalConditions, clips_by_test_set
from eval.scoring.error_rates import ErrorCounts, Normalize, count_errors
from eval.scoring.evaluate_metric import ErrorRate
from eval.scoring.hypotheses import Texts
from eval.scoring.resampling import macro_bootstrap, permutation_test

EXAMPLES = 10
"""Clips listed at most as examples of regressions and of loops."""
MIN_RECORDINGS = 5
"""Fewer recordings have no interval: resampling two of them says nothing."""
MIN_LOOP = 3
"""A text loops if a group of up to four words occurs this often in a row, and more often than in the reference."""


@dataclass(frozen=True)
class Scorer:
    """Counts errors with one normaliser, and resamples with one seed."""

    resamples: int
    """Bootstrap resamples behind each interval."""
    seed: int
    normalize: Normalize

    def row(self, system: System, conditions: EvalConditions, texts: Texts, teacher: Texts | None) -> AccuracyRow:
        """Score one system under all conditions.

        Args:
            system: The system.
            conditions: What it has transcribed.
            texts: Its texts.
            teacher: The teacher's texts; None to score the teacher itself, which is compared with nothing.
        """
        results, macro, macro_intervals = self.short_form(conditions.test, texts, teacher)
        return AccuracyRow(
            system.name, system.role, system.runtime, system.precision, results, macro, macro_intervals,
            self.regression(conditions.test, texts, teacher) if teacher else None,
            self.hallucination(conditions.test, conditions.silence, texts),
            self.noise(conditions.test, conditions.noisy, texts, teacher) if conditions.noisy else None,
            self.long_form(conditions.long_form, texts) if conditions.long_form else None,
        )  # fmt: skip

    def short_form(
        self, test: Condition, texts: Texts, teacher: Texts | None
    ) -> tuple[dict[str, SetScore], MacroScore, MacroIntervals]:
        """Return the scores of each test set, and their unweighted means over the sets without and with intervals."""
        indices_by_set = clips_by_test_set(test.clips)
        words = self._split(self._errors(test, texts[""]), indices_by_set)
        characters = self._split(self._errors(test, texts[""], characters=True), indices_by_set)
        others = self._split(self._errors(test, teacher[""]), indices_by_set) if teacher else None
        hypotheses, references = self._normalized(texts[""]), self._references(test)
        results = {}
        for number, (name, indices) in enumerate(indices_by_set.items()):
            metric = ErrorRate("wer", keep_in_memory=True).compute(
                predictions=[hypotheses[index] for index in indices],
                references=[references[index] for index in indices],
            )
            assert metric is not None, "compute returns None only in secondary processes"
            results[name] = SetScore(
                wer=self._interval([words[number]]), cer=self._interval([characters[number]]), utterances=len(indices),
                words=metric["units"], substitutions=metric["substitutions"], deletions=metric["deletions"],
                insertions=metric["insertions"],
                versus_teacher=self._difference([words[number]], [others[number]] if others else None),
            )  # fmt: skip
        wer, cer = self._interval(words), self._interval(characters)
        return results, MacroScore(wer.value, cer.value), MacroIntervals(wer, self._difference(words, others), cer)

    def regression(self, test: Condition, texts: Texts, teacher: Texts) -> RegressionScore:
        """Return the shares of clips with more and with fewer word errors than the teacher's text, and the worst."""
        references = self._references(test)
        hypotheses, taught = self._normalized(texts[""]), self._normalized(teacher[""])
        errors, teacher_errors = count_errors(references, hypotheses).total, count_errors(references, taught).total
        lost = errors - teacher_errors
        # The worst first: by additional errors, then by how few words there are.
        order = sorted(np.flatnonzero(lost > 0).tolist(), key=lambda index: (-lost[index], len(references[index])))
        worst = [
            WorseClip(
                id=test.clips[index].id, set=test.clips[index].set, reference=references[index], teacher=taught[index],
                text=hypotheses[index], errors=int(errors[index]), teacher_errors=int(teacher_errors[index]),
                words=len(references[index].split()),
            )
            for index in order[:EXAMPLES]
        ]  # fmt: skip
        return RegressionScore(len(lost), float((lost > 0).mean()), float((lost < 0).mean()), worst)

    def hallucination(self, test: Condition, silence: Condition | None, texts: Texts) -> HallucinationScore:
        """Return inserted words in speech, texts that loop, and words where nobody speaks."""
        errors = self._errors(test, texts[""])
        zeros = np.zeros_like(errors.units)
        hypotheses, references = self._normalized(texts[""]), self._references(test)
        loops = [
            index
            for index, (text, reference) in enumerate(zip(hypotheses, references, strict=True))
            if count_repeats(text.split()) >= max(MIN_LOOP, count_repeats(reference.split()) + 1)
        ]
        return HallucinationScore(
            insertion_rate=self._interval([replace(errors, substitutions=zeros, deletions=zeros)]),
            loops=len(loops), clips=len(hypotheses),
            looping=[
                LoopingClip(test.clips[index].id, references[index], hypotheses[index]) for index in loops[:EXAMPLES]
            ],
            alone=self._no_speech(silence, texts) if silence else None,
        )  # fmt: skip

    def _no_speech(self, silence: Condition, texts: Texts) -> NoSpeechScore:
        hypotheses = self._normalized(texts[silence.name])
        counts = [len(text.split()) for text in hypotheses]
        minutes = sum(clip.seconds for clip in silence.clips) / 60
        return NoSpeechScore(
            clips=len(hypotheses), with_words=sum(count > 0 for count in counts), words=sum(counts),
            words_per_minute=sum(counts) / minutes,
            texts=[NoSpeechText(clip.id, text) for clip, text in zip(silence.clips, hypotheses, strict=True)],
        )  # fmt: skip

    def noise(
        self, test: Condition, noisy: Sequence[Condition], texts: Texts, teacher: Texts | None
    ) -> list[NoiseScore]:
        """Return the macro WER of the same utterances without noise, then at each signal-to-noise ratio."""
        parts = noisy[0].parts
        quiet = Condition("", [test.clips[index] for index in parts], parts=parts)
        rows = []
        for condition in (quiet, *noisy):
            errors = self._errors_by_set(condition, texts)
            others = self._errors_by_set(condition, teacher) if teacher else None
            insertions = sum(int(counts.insertions.sum()) for counts in errors)
            words = sum(int(counts.units.sum()) for counts in errors)
            rows.append(
                NoiseScore(
                    condition.snr_db, self._interval(errors), self._difference(errors, others),
                    100 * insertions / max(1, words),
                )
            )  # fmt: skip
        return rows

    def long_form(self, conditions: Sequence[Condition], texts: Texts) -> dict[str, dict[str, LongFormScore]]:
        """Return scores by test set and mode.

        Joined recordings have one more mode, `separate`: the texts of their utterances, transcribed one by one.
        """
        clips = conditions[0].clips
        texts_by_mode = {str(condition.mode): texts[condition.name] for condition in conditions}
        if clips[0].parts:
            texts_by_mode["separate"] = [" ".join(texts[""][part] for part in clip.parts) for clip in clips]
        scores: dict[str, dict[str, LongFormScore]] = {}
        for mode, hypotheses in texts_by_mode.items():
            errors = self._errors(conditions[0], hypotheses)
            for name, indices in clips_by_test_set(clips).items():
                counts = errors.take(indices)
                wer = OptionalInterval(counts.rate)
                if len(indices) >= MIN_RECORDINGS:
                    wer = OptionalInterval(**vars(self._interval([counts])))
                scores.setdefault(name, {})[mode] = LongFormScore(
                    wer, words=int(counts.units.sum()), substitutions=int(counts.substitutions.sum()),
                    deletions=int(counts.deletions.sum()), insertions=int(counts.insertions.sum()),
                )  # fmt: skip
        return scores

    def _normalized(self, texts: Sequence[str]) -> list[str]:
        return [self.normalize(text) for text in texts]

    def _references(self, condition: Condition) -> list[str]:
        return self._normalized([clip.text for clip in condition.clips])

    def _errors(self, condition: Condition, texts: Sequence[str], *, characters: bool = False) -> ErrorCounts:
        return count_errors(self._references(condition), self._normalized(texts), characters=characters)

    def _errors_by_set(self, condition: Condition, texts: Texts) -> list[ErrorCounts]:
        """Count errors on a part of the test set; its texts without noise are taken from those of the whole set."""
        part = texts[condition.name] if condition.name else [texts[""][index] for index in condition.parts]
        return self._split(self._errors(condition, part), clips_by_test_set(condition.clips))

    @staticmethod
    def _split(errors: ErrorCounts, indices_by_set: dict[str, list[int]]) -> list[ErrorCounts]:
        return [errors.take(indices) for indices in indices_by_set.values()]

    def _interval(self, sets: Sequence[ErrorCounts]) -> Interval:
        return macro_bootstrap(sets, resamples=self.resamples, seed=self.seed)

    def _difference(self, sets: Sequence[ErrorCounts], others: Sequence[ErrorCounts] | None) -> PairedDifference | None:
        if others is None:
            return None
        difference = macro_bootstrap(sets, others, resamples=self.resamples, seed=self.seed)
        return PairedDifference(**vars(difference), p_value=permutation_test(sets, others, seed=self.seed))
