"""What the options of `sottovoce plan` ask for, checked against the teacher."""

import argparse
from collections.abc import Sequence

from distill.planning.random_students import Artefact
from distill.planning.search_space import PlannedTeacher, SearchSpace
from eval.latency.budget_verdict import describe_emulation
from recipes.core.errors import UserError
from recipes.core.machine import describe_machine
from recipes.schema.device_budget import DeviceBudget
from recipes.schema.export_section import DensePrecision, ExportSection


def requested_space(args: argparse.Namespace, teacher: PlannedTeacher) -> SearchSpace:
    """Return the search space: the values given on the command line, and otherwise everything the teacher allows.

    Raises UserError if a value is out of range.
    """
    shape = teacher.shape
    for option, low, high in (
        ("seconds", 1, teacher.seconds), ("tokens", 2, shape.target_positions // 2), ("runs", 2, 1000),
        ("encoder_layers", 1, shape.encoder_layers), ("decoder_layers", 1, shape.decoder_layers),
        ("windows", args.seconds, teacher.seconds), ("vocabularies", 1, teacher.text_tokens),
    ):  # fmt: skip
        value = getattr(args, option)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if wrong := [value for value in values if not low <= value <= high]:
            raise UserError(
                f"--{option.replace('_', '-')}: expected {low:g} to {high:g}, found {wrong[0]:g}; correct it"
            )
    space = SearchSpace.of(teacher, args.seconds)
    vocabularies = args.vocabularies and [
        None if tokens == teacher.text_tokens else tokens for tokens in sorted(args.vocabularies)
    ]
    return SearchSpace(
        sorted(args.encoder_layers or space.encoder_layers), sorted(args.decoder_layers or space.decoder_layers),
        sorted(args.windows or space.seconds), vocabularies or space.tokens,
    )  # fmt: skip


def requested_artefacts(names: Sequence[str]) -> list[Artefact]:
    """Return runtime and precision of names such as `onnx-int8`. Raises UserError for a name that no exporter has."""
    dense: tuple[DensePrecision, ...] = ("fp32", "fp16", "int8")
    everything = ExportSection(
        onnx=[*dense], openvino=[*dense], tflite=[*dense], mobile=["fp32"], ctranslate2=["fp32", "int8"]
    )
    known = {name: (runtime, precision) for name, runtime, precision in everything.artefacts}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--artefacts: expected some of {', '.join(known)}, found {unknown[0]}; correct the name")
    return [known[name] for name in names]


def emulation_of_device(budget: DeviceBudget, threads: int) -> tuple[float, str]:
    """Return how this machine stands in for the device.

    Returns:
        Time on the device divided by time on this machine, and a sentence that says so; the factor is 1 and the
        sentence empty if this machine is the device.
    """
    emulation = describe_emulation(budget, describe_machine()["cpu"], threads, budget.memory_mb)
    return (emulation.factor or 1.0, emulation.text) if emulation else (1.0, "")
