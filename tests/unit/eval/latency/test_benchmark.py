"""The measuring processes: memory caps, the noise guard, clients, tokens along the cache, where operators ran."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.audio.recordings import read_audio
from eval.decoding.systems import System
from eval.decoding.transcriber import Transcriber
from eval.latency.measuring import BenchmarkRunner, merge_measurements, run_task
from eval.latency.operator_placement import _litert, operator_placement
from eval.latency.timing import TimedRuntime, pass_to_pass_range, token_at
from eval.runtimes.process_memory import out_of_memory
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import RunError
from recipes.schema.device_budget import MeasurementSettings
from recipes.schema.recipe import Recipe, validate_recipe
from tests.conftest import ROOT, TEACHER

GREEDY = "import json, time; held = bytearray({mb} * 10**6); time.sleep(0.2); print(json.dumps({{'held': len(held)}}))"


def test_what_takes_more_than_the_cap_does_not_fit() -> None:
    found = run_task([sys.executable, "-c", GREEDY.format(mb=400)], "a", {}, MeasurementSettings(1, 200.0))
    assert found["fits"] is False
    assert found["clip_ms"] is None
    assert found["peak_rss_mb"] > 200
    assert "the cap is 200 MB" in found["reason"]


def test_what_stays_below_the_cap_is_measured() -> None:
    command = [sys.executable, "-c", GREEDY.format(mb=50)]
    assert run_task(command, "a", {}, MeasurementSettings(1, 400.0)) == {"held": 50_000_000}
    assert run_task(command, "a", {}, MeasurementSettings(1, None)) == {"held": 50_000_000}


def test_what_measures_ends_with_the_stage_that_started_it() -> None:
    measuring = "import time, recipes.core.machine as m; m.end_with_parent(); print(1, flush=True); time.sleep(60)"
    stage = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {measuring!r}])"
    process = subprocess.Popen([sys.executable, "-c", stage], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    (child,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    child.wait(10)  # TimeoutExpired if it lives on


def test_another_failure_is_no_want_of_memory() -> None:
    with pytest.raises(RunError, match="status 1: ValueError: broken"):
        run_task([sys.executable, "-c", "raise ValueError('broken')"], "a", {}, MeasurementSettings(1, 400.0))


@pytest.mark.parametrize(
    "said",
    ["[enforce fail] DefaultCPUAllocator: can't allocate memory", "CUDA out of memory.", "std::bad_alloc",
     "mkl_malloc: failed to allocate memory", "Failed to allocate memory for requested buffer of size 5"],
)  # fmt: skip
def test_want_of_memory_is_known_by_what_libraries_say(said: str) -> None:
    assert out_of_memory(RuntimeError(said))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes do not match"))


def recipe(tmp_path: Path, repeats: int = 2) -> Recipe:
    budget = tmp_path / "b.yaml"
    budget.write_text("{name: b, description: d, source: s, limits: {clip_p95_ms: 300}}")
    return validate_recipe(
        {"name": "x", "teacher": {"model": "m"}, "corpus": {"sources": [{"audio": "a"}]},
         "student": {"decoder_layers": 1}, "benchmark": {"repeats": repeats}, "budget": {"device": budget}}, "here",
    )  # fmt: skip


def row(p95: float, low: float, high: float) -> dict[str, Any]:
    return {"name": "a", "role": "export", "size_mb": 1.0, "clip_ms": {"p50": p95 / 2, "p95": p95}, "rtf": 0.1,
            "peak_rss_mb": 100.0, "noise": {"clip_p95_ms": [low, high], "rtf": [0.1, 0.1]}}  # fmt: skip


class Scripted(BenchmarkRunner):
    """Measures what it is told."""

    def __init__(self, recipe: Recipe, rows: list[dict[str, Any]]):
        super().__init__(recipe, [])
        self.rows = rows

    def measure(self, system: System, wanted: MeasurementSettings | None = None) -> dict[str, Any]:  # noqa: ARG002
        return self.rows.pop(0)


SYSTEM = {"a": System("a", "export", "onnx", "fp32", Path())}


def test_a_variant_near_its_limit_is_measured_again(tmp_path: Path) -> None:
    bench, rows = Scripted(recipe(tmp_path), [row(290, 1, 2), row(320, 1, 2)]), [row(295, 285, 310)]
    bench.settle(SYSTEM, rows, [], 1.0)
    assert [found["clip_p95_ms"] for found in rows[0]["measurements"]] == [295, 290, 320]
    assert rows[0]["clip_ms"]["p95"] == 295, "the median measurement stands for all"
    assert rows[0]["noise"]["clip_p95_ms"] == [290, 320]
    bench.settle(SYSTEM, rows, [], 1.0)
    assert not bench.rows, "what was repeated once stays as it is, however unsafe"


def test_a_variant_far_from_its_limit_is_not(tmp_path: Path) -> None:
    rows = [row(100, 90, 110)]
    Scripted(recipe(tmp_path), []).settle(SYSTEM, rows, [], 1.05)
    assert "measurements" not in rows[0]
    rows = [row(295, 285, 310)]
    Scripted(recipe(tmp_path, repeats=0), []).settle(SYSTEM, rows, [], 1.0)
    assert "measurements" not in rows[0]


def test_drift_of_the_baseline_counts_as_noise(tmp_path: Path) -> None:
    rows = [row(280, 279, 281)]
    Scripted(recipe(tmp_path), [row(270, 1, 2), row(290, 1, 2)]).settle(SYSTEM, rows, [], 1.1)
    assert rows[0]["noise"]["clip_p95_ms"] == [270, 290]


def test_of_repeated_measurements_one_that_does_not_fit_decides() -> None:
    ended = {**row(1, 1, 1), "fits": False, "clip_ms": None}
    assert merge_measurements([row(100, 90, 110), ended]) is ended


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30), st.integers(1, 5))
def test_noise_is_what_passes_differ_by(whole: list[float], clips: int) -> None:
    found = pass_to_pass_range(whole, [1.0] * len(whole), clips)
    if len(whole) < 2 * clips:
        assert found is None
        return
    assert found is not None
    passes = [sum(whole[at : at + clips]) / clips for at in range(0, len(whole) - clips + 1, clips)]
    assert found["rtf"] == pytest.approx([min(passes), max(passes)])
    steady = pass_to_pass_range(whole[:clips] * 3, [1.0] * 3 * clips, clips)
    assert steady is not None
    for low, high in steady.values():
        assert low == pytest.approx(high)


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[str]:
    return [str(file) for file in sorted((speech / "test").glob("*.flac"))]


def task(folder: Path, runtime: str, precision: str, clips: list[str]) -> dict[str, Any]:
    return {"folder": str(folder), "runtime": runtime, "precision": precision, "clips": [[clip] for clip in clips],
            "threads": 1, "runs": 6, "warmup": 1, "tokens": None, "language": "en", "task": "transcribe"}  # fmt: skip


def test_clients_share_one_process(clips: list[str]) -> None:
    command = [sys.executable, "-m", "eval.latency.concurrency"]
    given = task(TEACHER, "torch", "fp32", clips) | {"clients": 3}
    found = run_task(command, "teacher", given, MeasurementSettings(1, None))
    assert (found["clients"], found["sessions"], found["requests"]) == (3, 1, 6)
    assert found["p50_ms"] <= found["p95_ms"]
    assert found["tokens_per_s"] > found["requests_per_s"], "a text has several tokens"
    # Three wait at one session, and each at last for all three.
    assert found["mean_ms"] > 1e3 / found["requests_per_s"]


def test_a_token_is_timed_as_far_along_the_cache_as_the_model_goes(clips: list[str]) -> None:
    timed = TimedRuntime(TorchRuntime(load_model(TEACHER)))
    transcriber = Transcriber(timed, TEACHER, "en")
    seen = []
    step = timed.runtime.step

    def watched(tokens_BL: np.ndarray, state: Any) -> Any:
        held = state.cache.get_seq_length() if state.cache is not None else 0
        result = step(tokens_BL, state)
        seen.append(held)
        return result

    timed.runtime.step = watched  # type: ignore[method-assign]
    near = token_at(10, transcriber, timed, read_audio(clips[0]), rounds=1)
    assert near["cache"] == 10
    assert seen[-5:] == [8, 9, 10, 11, 12]
    far = token_at(200, transcriber, timed, read_audio(clips[0]), rounds=1)
    assert far["cache"] == seen[-3] == transcriber.format.max_length - 4, "the model holds 128"


def test_onnx_runtime_tells_where_its_operators_ran(tmp_path: Path, clips: list[str]) -> None:
    pytest.importorskip("onnxscript")
    from distill.exporters.onnx_export import export_onnx
    from eval.runtimes.onnx_runtime import OnnxRuntime

    export_onnx(load_model(TEACHER), tmp_path, ["int8"])
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((TEACHER / name).read_bytes())
    transcriber = Transcriber(OnnxRuntime(tmp_path, "int8", 1), tmp_path, "en")
    rows = operator_placement(task(tmp_path, "onnx", "int8", clips), transcriber, read_audio(clips[0]))
    assert rows is not None
    assert {(row["part"], row["place"]) for row in rows} == {("encoder", "CPU"), ("decoder", "CPU")}
    assert sum(row["count"] for row in rows if row["op"] == "Conv") == 2, "the encoder's two convolutions, each once"
    quantised = {row["op"] for row in rows if "int8" in row["precision"]}
    assert quantised & {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger"}


def test_what_a_litert_delegate_took_lies_between_its_inputs_and_outputs() -> None:
    class Listed:
        def _get_ops_details(self) -> list[dict[str, Any]]:
            ops = [("EMBEDDING", [0], [1]), ("FC", [1, 2], [3]), ("ADD", [3, 1], [4]), ("TOPK", [4], [5]),
                   ("DELEGATE", [1, 2], [4])]  # fmt: skip
            types = [np.int32, np.float32, np.int8]
            return [
                {
                    "index": index,
                    "op_name": name,
                    "inputs": given,
                    "outputs": made,
                    "operand_types": types[: len(given)],
                }
                for index, (name, given, made) in enumerate(ops)
            ]

    places = {op: place for op, _, place in _litert(Listed())}
    assert places == {"EMBEDDING": "CPU", "FC": "CPU XNNPACK", "ADD": "CPU XNNPACK", "TOPK": "CPU"}
