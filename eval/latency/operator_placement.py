"""Which operators ran where and in what precision, as far as a runtime tells.

ONNX Runtime: the kernels of a profiled run. OpenVINO: its compiled graph. LiteRT: what its delegates took. PyTorch and
CTranslate2 tell nothing of the kind.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from eval.decoding.transcriber import Transcriber

Ops = Counter[tuple[str, str, str]]
"""How many operators of a kind, by operator (of OpenVINO with its kernel), element types, and place."""


def operator_placement(task: dict[str, Any], transcriber: Transcriber, clip: np.ndarray) -> list[dict[str, Any]] | None:
    """Rows of part, op, precision, place and count, most frequent first; None where the runtime tells nothing."""
    runtime = getattr(transcriber.runtime, "runtime", transcriber.runtime)
    if task["runtime"] == "onnx":
        parts = _onnx(task, transcriber, clip)
    elif task["runtime"] == "openvino":
        parts = {part: _openvino(getattr(runtime, f"_{part}")) for part in ("encoder", "decoder")}
    elif task["runtime"] in ("tflite", "mobile"):
        parts = {part: _litert(getattr(runtime, f"_{part}")._interpreter) for part in ("encoder", "decoder")}
    else:
        return None
    return [
        {"part": part, "op": op, "precision": precision, "place": place, "count": count}
        for part, ops in parts.items()
        for (op, precision, place), count in ops.most_common()
    ]


def _onnx(task: dict[str, Any], transcriber: Transcriber, clip: np.ndarray) -> dict[str, Ops]:
    from eval.runtimes.onnx_runtime import OnnxRuntime

    with tempfile.TemporaryDirectory() as folder:
        profiled = OnnxRuntime(Path(task["folder"]), task["precision"], task["threads"], profile=Path(folder))
        Transcriber.with_runtime(transcriber, profiled).transcribe([clip], exact_tokens=2)
        return {part: _kernels(Path(file)) for part, file in profiled.end_profiling().items()}


def _kernels(trace: Path) -> Ops:
    """Each node once, however often it ran."""
    seen = {}
    for event in json.loads(trace.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            said = event["args"]
            types = [kind for value in said.get("input_type_shape", []) for kind in value]
            place = said.get("provider", "").removesuffix("ExecutionProvider")
            seen[event["name"]] = (said["op_name"], _types(types), place)
    return Counter(seen.values())


def _types(inputs: Iterable[str]) -> str:
    """The element types an operator computes with: those of indices and shapes only where it has no others."""
    kinds = sorted(set(inputs))
    return " + ".join([kind for kind in kinds if kind not in ("int32", "int64", "bool")] or kinds)


def _openvino(request: Any) -> Ops:
    device = request.get_compiled_model().get_property("EXECUTION_DEVICES")[0]
    infos = [op.get_rt_info() for op in request.get_compiled_model().get_runtime_model().get_ops()]
    return Counter(
        (f"{_said(info, 'layerType')} {_said(info, 'primitiveType')}".strip(), _said(info, "runtimePrecision"), device)
        for info in infos
        if _said(info, "layerType") not in ("Const", "Input", "Output")
    )


def _said(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""


def _litert(interpreter: Any) -> Ops:
    """The operators of the file, each in a delegate or in LiteRT's own kernels.

    A delegate's node lists its inputs and outputs; what it took lies between them and is still listed itself.
    """
    listed = interpreter._get_ops_details()
    makers = {tensor: op for op in listed if op["op_name"] != "DELEGATE" for tensor in op["outputs"]}
    taken = set()
    for delegate in (op for op in listed if op["op_name"] == "DELEGATE"):
        given, wanted = set(delegate["inputs"]), list(delegate["outputs"])
        while wanted:
            op = makers.get(wanted.pop())
            if op is not None and op["index"] not in taken:
                taken.add(op["index"])
                wanted += [tensor for tensor in op["inputs"] if tensor not in given]
    return Counter(
        (
            op["op_name"],
            _types(np.dtype(kind).name for kind in op["operand_types"]),
            "CPU XNNPACK" if op["index"] in taken else "CPU",
        )
        for op in listed
        if op["op_name"] != "DELEGATE"
    )
