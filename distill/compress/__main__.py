"""Stage `compress`: the student made smaller, by the recipe's methods in turn.

    python -m distill.compress recipes/alnum-compressed/recipe.yaml

`compression.json` holds what each method did to each layer. The stage `heal` trains the result.
"""

from typing import Any

from distill.calibration import Calibration
from distill.compress import Method
from distill.compress.low_rank import low_rank
from distill.compress.prune import prune
from distill.student import encoder_macs_m, parameters_m, save_model
from eval.runtimes.torch import load_model
from eval.utterances import read_utterances
from recipes.errors import UserError, run_main
from recipes.flow import checkpoint
from recipes.stage import arguments, open_stage, write_json

METHODS: dict[str, Method] = {"prune": prune, "low_rank": low_rank}
"""By the name of their section."""


def main() -> None:
    """Training audio, each method on the result of the one before, the smaller student."""
    recipe, command = arguments("compress")
    if (section := recipe.compress) is None:
        raise UserError("compress: the recipe has no such section; add `compress: {low_rank: {preset: balanced}}`")
    with open_stage(recipe, "compress", command) as work:
        # 1. The student as it was trained, and audio of the training split to look at its layers on.
        source = checkpoint(recipe, before="compress")
        student = load_model(source)
        audio = [item.audio for item in read_utterances(recipe.root / "corpus", "train")]
        calibration = Calibration.spread(audio, student.config, section.clips, "compress:")
        # 2. The methods, and what each left.
        steps: list[dict[str, Any]] = [_measured("student", student)]
        for name, options in section.methods:
            student, layers = METHODS[name](student, options, calibration)
            steps.append(_measured(name, student) | {"layers": layers})
        # 3. A student like any other, which the trainer can heal and every exporter takes.
        save_model(student, work.folder / "model", processors=source)
        write_json(work.folder / "compression.json", {"command": command, "steps": steps})
        work.finish(
            counts={"calibration_clips": len(calibration)},
            metrics={step["name"]: {key: step[key] for key in ("parameters_m", "encoder_macs_m")} for step in steps},
        )


def _measured(name: str, model: Any) -> dict[str, Any]:
    return {"name": name, "parameters_m": parameters_m(model), "encoder_macs_m": encoder_macs_m(model)}


if __name__ == "__main__":
    run_main(main)
