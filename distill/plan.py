"""`sottovoce plan`: the largest students that fit a device, found before any training.

    sottovoce plan --budget recipes/budgets/laptop.yaml --teacher tiny --write recipes/mine/recipe.yaml

Eight shapes of the teacher's width are built with random weights, exported and timed here; cost models fitted to them
predict all others. The largest that is predicted to pass is built and timed too before a recipe is written for it.
What no plan can know is the WER: training, and the report's verdict, tell that.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from distill.planning.choice import StudentOption, judge_candidate, largest_options, nearest_option, predict_options
from distill.planning.cost_model import CostModel, leave_one_out_errors
from distill.planning.option_text import _misses, option_sentence, options_table
from distill.planning.random_students import Artefact
from distill.planning.recipe_writing import refuse_existing, write_recipe
from distill.planning.search_space import PlannedTeacher, SearchSpace
from distill.planning.shape_timings import ShapeTimings
from eval.latency.budget_verdict import describe_emulation
from recipes.core.errors import BudgetMissed, UserError, run_main
from recipes.core.machine import describe_machine
from recipes.schema.device_budget import DeviceBudget, load_budget
from recipes.schema.export_section import DensePrecision, ExportSection

TRIES = 5
"""Students timed to find one that passes as predicted."""


def main() -> None:
    """Measure, fit, choose, measure the chosen one, write."""
    given = _arguments()
    if given.write:
        refuse_existing(given.write)
    budget, artefacts = load_budget(given.budget), _artefacts(given.artefacts)
    teacher = PlannedTeacher.find(given.teacher, given.vocabulary, given.language)
    space = _space(given, teacher)
    threads = min(budget.threads or 2, len(os.sched_getaffinity(0)))
    measuring = ShapeTimings(
        teacher, given.cache, threads, given.seconds, given.tokens or round(4 * given.seconds), given.runs,
        given.language,
    )  # fmt: skip
    factor, words = _here(budget, threads)
    # 1. A few shapes measured, a cost model fitted to each artefact.
    points = measuring.points(space.design(), artefacts)
    fitted = {
        each: (CostModel.fit(found, measuring.tokens), leave_one_out_errors(found, measuring.tokens))
        for each, found in points.items()
    }
    print(
        f"{words}A clip is {given.seconds:g} s and {measuring.tokens} tokens. Shapes the cost models had not seen they "
        "missed by (root mean square): " + "; ".join(_misses(name, said) for name, (_, said) in fitted.items()) + "."
    )
    # 2. All others predicted; the largest that pass.
    found = predict_options(budget, teacher, space.candidates(), fitted, factor)
    if not (passing := largest_options(found)):
        raise BudgetMissed(
            f"budget {budget.name}: no student of {teacher.model} passes; nearest: {option_sentence(nearest_option(found))}"
        )
    print("Largest that are predicted to pass, with what each leaves of a limit:")
    print(options_table(passing[: given.rows]))
    # 3. The largest is measured itself, then the next, until one passes as predicted.
    chosen = confirm_by_measuring(budget, passing, measuring, factor)
    print(f"Measured:\n{options_table([chosen])}\nWER cannot be planned: train, then read the verdict.")
    if given.write:
        for said in write_recipe(
            given.write,
            chosen,
            teacher,
            given.budget,
            threads=threads,
            language=given.language,
            audio=given.audio,
            comment=f"Planned for {budget.name}; random weights, measured on {describe_machine()['cpu']}:\n{options_table([chosen])}",
        ):
            print(said)
        print(f"recipe: {given.write}")


def confirm_by_measuring(
    budget: DeviceBudget, passing: Sequence[StudentOption], measuring: ShapeTimings, factor: float
) -> StudentOption:
    """The first that passes when measured; BudgetMissed where none of the first few does."""
    for option in passing[:TRIES]:
        ((shape, figures),) = measuring.points([option.candidate], [option.artefact])[option.artefact]
        measured = judge_candidate(budget, option.candidate, shape, option.artefact, figures, {}, factor)
        if measured.kept:
            return measured
        print(f"Predicted to pass, but measured:\n{options_table([measured])}")
    raise BudgetMissed(
        f"budget {budget.name}: none of the {len(passing[:TRIES])} largest passed when measured; is the machine busy? "
        "Run it again on a quiet one, with another --cache"
    )


def _here(budget: DeviceBudget, threads: int) -> tuple[float, str]:
    """Times here to times there, and in words how this machine stands for the device."""
    run = {"devices": [budget.name], "threads": threads, "memory_mb": budget.memory_mb}
    said = describe_emulation(budget, {"threads": threads, "cpu": describe_machine()["cpu"], "emulated": [run]})
    return (said["factor"] or 1.0, f"{said['text']} ") if said else (1.0, "")


def _space(given: argparse.Namespace, teacher: PlannedTeacher) -> SearchSpace:
    """What may be planned; the user's own values in place of a teacher's."""
    least, shape = given.seconds, teacher.shape
    for option, low, high in (
        ("seconds", 1, teacher.seconds), ("tokens", 2, shape.target_positions // 2), ("runs", 2, 1000),
        ("encoder_layers", 1, shape.encoder_layers), ("decoder_layers", 1, shape.decoder_layers),
        ("windows", least, teacher.seconds), ("vocabularies", 1, teacher.text_tokens),
    ):  # fmt: skip
        asked = getattr(given, option)
        values = [] if asked is None else asked if isinstance(asked, list) else [asked]
        if wrong := [each for each in values if not low <= each <= high]:
            raise UserError(f"--{option.replace('_', '-')}: expected {low:g} to {high:g}, found {wrong[0]:g}")
    space = SearchSpace.of(teacher, least)
    whole = teacher.text_tokens
    tokens = given.vocabularies and [None if each == whole else each for each in sorted(given.vocabularies)]
    return SearchSpace(
        sorted(given.encoder_layers or space.encoder_layers), sorted(given.decoder_layers or space.decoder_layers),
        sorted(given.windows or space.seconds), tokens or space.tokens,
    )  # fmt: skip


def _artefacts(names: Sequence[str]) -> list[Artefact]:
    common: tuple[DensePrecision, ...] = ("fp32", "fp16", "int8")
    every = ExportSection(
        onnx=[*common], openvino=[*common], tflite=[*common], mobile=["fp32"], ctranslate2=["fp32", "int8"]
    )
    known = {name: (runtime, precision) for name, runtime, precision in every.artefacts}
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"--artefacts: expected some of {', '.join(known)}, found {wrong[0]}")
    return [known[name] for name in names]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sottovoce plan", description="The largest students that fit a budget, before any training."
    )
    add = parser.add_argument
    add("--budget", type=Path, required=True, help="budget file, such as recipes/budgets/laptop.yaml")
    add("--teacher", required=True, help="tiny, base, small, medium, large-v3, ... or a folder in Whisper format")
    add("--vocabulary", type=Path, help="folder of a named shape's tokenizer; default $VOCABULARY")
    add("--write", type=Path, help="recipe to write, such as recipes/mine/recipe.yaml")
    add("--audio", type=Path, nargs="+", default=[], help="folders of audio for the recipe; default the demo's text")
    add("--language", default="en", help="code of the audio's language")
    add("--artefacts", nargs="+", default=["onnx-int8", "openvino-int8"],
        help="runtime-precision; default onnx-int8 openvino-int8")  # fmt: skip
    add("--seconds", type=float, default=5.0, help="length of a clip; no shorter window is planned")
    add("--tokens", type=int, help="tokens of a clip; default 4 a second, English in Whisper's vocabulary")
    for option, text in (("--encoder-layers", "depths"), ("--decoder-layers", "depths"), ("--windows", "seconds"),
                         ("--vocabularies", "text tokens")):  # fmt: skip
        add(option, type=int, nargs="+", help=f"{text} to plan with")
    add("--runs", type=int, default=15, help="timed clips of each shape")
    add("--rows", type=int, default=10, help="students shown")
    add("--cache", type=Path, default=Path("runs/plan"), help="folder of what was measured")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
