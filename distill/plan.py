"""`sottovoce plan`: find the largest students that fit a device before training any.

    sottovoce plan --budget recipes/budgets/laptop.yaml --teacher tiny --write recipes/mine/recipe.yaml

Eight student shapes of the teacher's width are built with random weights, exported and measured on this machine. Cost
models fitted to them predict latency, size and memory of all other shapes. The largest shape that is predicted to pass
is built and measured too before a recipe is written for it.

A plan cannot know the word error rate (WER): that takes training, and the report's verdict on the result.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.planning.choice import StudentOption, judge_candidate, largest_options, nearest_option, predict_options
from distill.planning.cost_model import FittedCosts, PredictionErrors
from distill.planning.option_text import errors_sentence, option_sentence, options_table
from distill.planning.plan_request import emulation_of_device, requested_artefacts, requested_space
from distill.planning.planned_recipe import draft_planned_recipe
from distill.planning.search_space import PlannedTeacher
from distill.planning.shape_timings import ShapeTimings
from recipes.core.errors import BudgetMissed, run_main
from recipes.core.logs import log
from recipes.core.machine import describe_machine, usable_cores
from recipes.engine.recipe_writer import refuse_existing, run_name, write_recipe
from recipes.schema.device_budget import DeviceBudget, load_budget

MAX_CONFIRMATIONS = 5
"""How many of the largest students are measured to find one that passes as predicted."""


def main() -> None:
    """Plan the largest students for a device, and write a recipe for the largest."""
    # 1. Read what is asked for: the budget, the teacher, and the values that a student's shape may take.
    args = _arguments()
    if args.write:
        refuse_existing(args.write, "--write")
    budget, artefacts = load_budget(args.budget), requested_artefacts(args.artefacts)
    teacher = PlannedTeacher.find(args.teacher, args.vocabulary, args.language)
    space = requested_space(args, teacher)
    threads = min(budget.threads or 2, usable_cores())
    factor, emulation = emulation_of_device(budget, threads)

    # 2. Measure a few shapes, and fit a cost model to them for each artefact.
    tokens = args.tokens or round(4 * args.seconds)
    timings = ShapeTimings(teacher, args.cache, threads, args.seconds, tokens, args.runs, args.language)
    measured = timings.measure(space.design(), artefacts)
    fitted = {artefact: FittedCosts.fit(shapes, tokens) for artefact, shapes in measured.items()}
    print(f"{emulation} A clip is {args.seconds:g} s and {tokens} tokens. {errors_sentence(fitted)}".lstrip())

    # 3. Predict the cost of every shape, and take the largest that are predicted to pass.
    options = predict_options(budget, teacher, space.candidates(), fitted, factor)
    if not (passing := largest_options(options)):
        nearest = option_sentence(nearest_option(options))
        raise BudgetMissed(f"budget {budget.name}: no student of {teacher.model} passes; nearest: {nearest}")
    print("Largest students that are predicted to pass; in brackets the share of the limit that is left:")
    print(options_table(passing[: args.rows]))

    # 4. Measure the largest itself, or else the next, until one passes as predicted.
    chosen = confirm_by_measuring(budget, passing, timings, factor)
    table = options_table([chosen])
    print(f"Measured:\n{table}\nThe WER cannot be planned: train the student, then read the report's verdict.")

    # 5. Write a recipe for it.
    if args.write:
        origin = f"Planned for {budget.name}; random weights, measured on {describe_machine()['cpu']}:"
        draft = draft_planned_recipe(
            run_name(args.write), chosen, teacher, args.budget,
            threads=threads, language=args.language, audio=args.audio, header=[origin, *table.splitlines()],
        )  # fmt: skip
        print("\n".join(write_recipe(args.write, draft)))
        print(f"recipe: {args.write}")


def confirm_by_measuring(
    budget: DeviceBudget, passing: Sequence[StudentOption], timings: ShapeTimings, factor: float
) -> StudentOption:
    """Return the first option that passes when it is measured.

    Raises BudgetMissed if none of the first `MAX_CONFIRMATIONS` does.
    """
    for option in passing[:MAX_CONFIRMATIONS]:
        (point,) = timings.measure([option.candidate], [option.artefact])[option.artefact]
        measured = judge_candidate(
            budget, option.candidate, point.shape, option.artefact, point.figures, PredictionErrors(), factor
        )
        if measured.passes:
            return measured
        log.info(f"Predicted to pass, but measured:\n{options_table([measured])}")
    raise BudgetMissed(
        f"budget {budget.name}: none of the {len(passing[:MAX_CONFIRMATIONS])} largest students passed when measured; "
        "the machine may have been busy: run the plan again when it is not, with another --cache"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sottovoce plan", description="Find the largest students that fit a device budget, before any training."
    )
    add = parser.add_argument
    add("--budget", type=Path, required=True, help="budget file, such as recipes/budgets/laptop.yaml")
    add("--teacher", required=True, help="tiny, base, small, medium, large-v3, ... or a folder in Whisper format")
    add("--vocabulary", type=Path, help="folder with the tokenizer of a named teacher; default: $VOCABULARY")
    add("--write", type=Path, help="recipe file to write, such as recipes/mine/recipe.yaml")
    add("--audio", type=Path, nargs="+", default=[],
        help="folders of audio for the recipe; default: speech synthesised from the demo's sentences")  # fmt: skip
    add("--language", default="en", help="language code of the audio; default: %(default)s")
    add("--artefacts", nargs="+", default=["onnx-int8", "openvino-int8"],
        help="artefacts to plan with, as RUNTIME-PRECISION; default: onnx-int8 openvino-int8")  # fmt: skip
    add("--seconds", type=float, default=5.0,
        help="length of a clip; shorter windows are not planned; default: %(default)s")  # fmt: skip
    add("--tokens", type=int, help="tokens per clip; default: 4 per second, as for English in Whisper's vocabulary")
    add("--encoder-layers", type=int, nargs="+", help="encoder depths to plan with; default: up to eight depths")
    add("--decoder-layers", type=int, nargs="+", help="decoder depths to plan with; default: up to eight depths")
    add("--windows", type=int, nargs="+", help="windows in seconds to plan with")
    add("--vocabularies", type=int, nargs="+", help="numbers of text tokens to plan with")
    add("--runs", type=int, default=15, help="timed runs of each shape; default: %(default)s")
    add("--rows", type=int, default=10, help="students to show; default: %(default)s")
    add("--cache", type=Path, default=Path("runs/plan"), help="folder of the measurements; default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)
