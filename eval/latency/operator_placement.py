"""Count which operators of a model run where and with which element types, as far as its runtime reports it.

ONNX Runtime: the kernels of a profiled run. OpenVINO: the operators of the compiled graph. LiteRT: which operators its
delegates execute. PyTorch and CTranslate2 report nothing of the kind.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from eval.decoding.transcriber import Transcriber
from eval.latency.latency_rows import MeasuringTask, OperatorCount

Operators = Counter[tuple[str, str, str]]
"""Number of operators by name (with OpenVINO followed by the kernel), element types and place."""


def operator_placement(task: MeasuringTask, transcriber: Transcriber, clip: np.ndarray) -> list[OperatorCount] | None:
    """Return how often each operator of encoder and decoder occurs, the most frequent first.

    None if the runtime does not report it. For ONNX Runtime, `clip` (samples [N]) is transcribed once more.
    """
    runtime = getattr(transcriber.runtime, "runtime", transcriber.runtime)
    if task.runtime == "onnx":
        parts = _onnx_operators(task, transcriber, clip)
    elif task.runtime == "openvino":
        parts = {part: _openvino_operators(getattr(runtime, f"_{part}")) for part in ("encoder", "decoder")}
    elif task.runtime in ("tflite", "mobile"):
        parts = {part: _litert_operators(getattr(runtime, f"_{part}")._interpreter) for part in ("encoder", "decoder")}
    else:
        return None
    return [
        OperatorCount(part, op, precision, place, count)
        for part, operators in parts.items()
        for (op, precision, place), count in operators.most_common()
    ]


def _onnx_operators(task: MeasuringTask, transcriber: Transcriber, clip: np.ndarray) -> dict[str, Operators]:
    from eval.runtimes.onnx_runtime import OnnxRuntime

    with tempfile.TemporaryDirectory() as folder:
        profiled = OnnxRuntime(Path(task.folder), task.precision, task.threads, profile=Path(folder))
        transcriber.with_runtime(profiled).transcribe([clip], exact_tokens=2)
        return {part: _profiled_kernels(Path(file)) for part, file in profiled.end_profiling().items()}


def _profiled_kernels(trace: Path) -> Operators:
    """Count the nodes in a profile of ONNX Runtime, each once however often it ran."""
    nodes = {}
    for event in json.loads(trace.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            args = event["args"]
            types = [kind for value in args.get("input_type_shape", []) for kind in value]
            place = args.get("provider", "").removesuffix("ExecutionProvider")
            nodes[event["name"]] = (args["op_name"], _join_types(types), place)
    return Counter(nodes.values())


def _join_types(inputs: Iterable[str]) -> str:
    """Join the element types of an operator's inputs; integers and booleans count only if there are no others.

    Those are indices and shapes of operators that compute with other types.
    """
    types = sorted(set(inputs))
    return " + ".join([kind for kind in types if kind not in ("int32", "int64", "bool")] or types)


def _openvino_operators(request: Any) -> Operators:
    device = request.get_compiled_model().get_property("EXECUTION_DEVICES")[0]
    infos = [op.get_rt_info() for op in request.get_compiled_model().get_runtime_model().get_ops()]
    return Counter(
        (
            f"{_info_text(info, 'layerType')} {_info_text(info, 'primitiveType')}".strip(),
            _info_text(info, "runtimePrecision"),
            device,
        )
        for info in infos
        if _info_text(info, "layerType") not in ("Const", "Input", "Output")
    )


def _info_text(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""


def _litert_operators(interpreter: Any) -> Operators:
    """Count the operators of a file, each executed either by a delegate or by LiteRT's own kernels.

    LiteRT lists a delegate as one operator with the inputs and outputs of the part that it replaces, and still lists
    the operators of that part. They are found by going back from the delegate's outputs to its inputs.
    """
    details = interpreter._get_ops_details()
    producers = {tensor: op for op in details if op["op_name"] != "DELEGATE" for tensor in op["outputs"]}
    delegated = set()
    for delegate in (op for op in details if op["op_name"] == "DELEGATE"):
        inputs, pending = set(delegate["inputs"]), list(delegate["outputs"])
        while pending:
            op = producers.get(pending.pop())
            if op is not None and op["index"] not in delegated:
                delegated.add(op["index"])
                pending += [tensor for tensor in op["inputs"] if tensor not in inputs]
    return Counter(
        (
            op["op_name"],
            _join_types(np.dtype(kind).name for kind in op["operand_types"]),
            "CPU XNNPACK" if op["index"] in delegated else "CPU",
        )
        for op in details
        if op["op_name"] != "DELEGATE"
    )
