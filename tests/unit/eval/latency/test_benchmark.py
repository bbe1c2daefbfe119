"""The measuring processes: memory caps, repeated measurements, clients, decoder steps, placement of operators."""

import subprocess
import sys
from dataclasses import replace
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
from eval.latency.latency_rows import EmulatedRun, LatencyRow, MeasuringTask, Percentiles
from eval.latency.measuring import BenchmarkRunner, MemoryCapReached, merge_measurements, run_task, settle_emulated
from eval.latency.operator_placement import _litert_operators, operator_placement
from eval.latency.timing import TimedRuntime, pass_to_pass_range, token_at
from eval.runtimes.process_memory import out_of_memory
from eval.runtimes.torch_runtime import TorchRuntime, load_model
from recipes.core.errors import RunError
from recipes.schema.benchmark_section import BenchmarkSection
from recipes.schema.device_budget import BudgetLimits, DeviceBudget, MeasurementSettings
from tests.conftest import ROOT, TEACHER

GREEDY = "import json, time; held = bytearray({mb} * 10**6); time.sleep(0.2); print(json.dumps({{'held': len(held)}}))"


def test_what_takes_more_than_the_cap_does_not_fit() -> None:
    with pytest.raises(MemoryCapReached, match="the cap is 200 MB") as caught:
        run_task([sys.executable, "-c", GREEDY.format(mb=400)], "a", {}, MeasurementSettings(1, 200.0))
    assert caught.value.reached_mb > 200


def test_a_system_over_the_cap_has_a_row_that_does_not_fit() -> None:
    runner = BenchmarkRunner(BenchmarkSection(), [], "en")
    system = System("teacher", "teacher", "torch", "fp32", TEACHER)
    row = runner.measure(system, MeasurementSettings(1, 10.0))
    assert (row.fits, row.clip_ms, row.rtf) == (False, None, None)
    assert row.peak_rss_mb > 10
    assert row.reason is not None
    assert "the cap is 10 MB" in row.reason


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


BUDGET = DeviceBudget(name="b", description="d", source="s", limits=BudgetLimits(clip_p95_ms=300))
SYSTEMS = [System("a", "export", "onnx", "fp32", Path())]


def row(p95: float, low: float, high: float) -> LatencyRow:
    return LatencyRow(
        name="a", role="export", runtime="onnx", precision="fp32", size_mb=1.0, peak_rss_mb=100.0,
        clip_ms=Percentiles(p95 / 2, p95, p95), rtf=0.1, noise={"clip_p95_ms": (low, high), "rtf": (0.1, 0.1)},
    )  # fmt: skip


class Scripted(BenchmarkRunner):
    """Returns prepared rows instead of measuring."""

    prepared: list[LatencyRow]

    def measure(self, system: System, settings: MeasurementSettings | None = None) -> LatencyRow:  # noqa: ARG002
        return self.prepared.pop(0)


def scripted(*rows: LatencyRow, repeats: int = 2) -> Scripted:
    runner = Scripted(BenchmarkSection(repeats=repeats), [], "en")
    object.__setattr__(runner, "prepared", list(rows))
    return runner


def test_a_system_close_to_its_limit_is_measured_again() -> None:
    runner = scripted(row(290, 1, 2), row(320, 1, 2))
    (settled,) = runner.settle(SYSTEMS, [row(295, 285, 310)], [BUDGET], None, 1.0)
    assert settled.measurements is not None
    assert [measurement.clip_p95_ms for measurement in settled.measurements] == [295, 290, 320]
    assert settled.clip_p95_ms == 295, "the median measurement is taken"
    assert settled.noise is not None
    assert settled.noise["clip_p95_ms"] == (290, 320)
    assert runner.settle(SYSTEMS, [settled], [BUDGET], None, 1.0) == [settled], "repeated once, however close"
    assert not runner.prepared


def test_a_system_far_from_its_limit_is_not() -> None:
    (far,) = scripted().settle(SYSTEMS, [row(100, 90, 110)], [BUDGET], None, 1.05)
    assert far.measurements is None
    (close,) = scripted(repeats=0).settle(SYSTEMS, [row(295, 285, 310)], [BUDGET], None, 1.0)
    assert close.measurements is None


def test_drift_of_the_baseline_counts_as_noise() -> None:
    runner = scripted(row(270, 1, 2), row(290, 1, 2))
    (settled,) = runner.settle(SYSTEMS, [row(280, 279, 281)], [BUDGET], None, 1.1)
    assert settled.noise is not None
    assert settled.noise["clip_p95_ms"] == (270, 290)


def test_only_the_budgets_of_an_emulated_run_judge_it() -> None:
    run = EmulatedRun(["b"], 1, None, [row(295, 285, 310)])
    other = BUDGET.model_copy(update={"name": "c"})
    assert settle_emulated(scripted(), SYSTEMS, run, [other], 1.0) == run
    settled = settle_emulated(scripted(row(290, 1, 2), row(320, 1, 2)), SYSTEMS, run, [other, BUDGET], 1.0)
    assert settled.variants[0].measurements is not None


def test_of_repeated_measurements_one_that_does_not_fit_decides() -> None:
    over_cap = replace(row(1, 1, 1), fits=False, clip_ms=None)
    assert merge_measurements([row(100, 90, 110), over_cap]) is over_cap


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30), st.integers(1, 5))
def test_noise_is_what_passes_differ_by(whole: list[float], clips: int) -> None:
    found = pass_to_pass_range(whole, [1.0] * len(whole), clips)
    if len(whole) < 2 * clips:
        assert found is None
        return
    assert found is not None
    passes = [sum(whole[at : at + clips]) / clips for at in range(0, len(whole) - clips + 1, clips)]
    assert found["rtf"] == pytest.approx((min(passes), max(passes)))
    steady = pass_to_pass_range(whole[:clips] * 3, [1.0] * 3 * clips, clips)
    assert steady is not None
    for low, high in steady.values():
        assert low == pytest.approx(high)


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[str]:
    return [str(file) for file in sorted((speech / "test").glob("*.flac"))]


def task(folder: Path, runtime: str, precision: str, clips: list[str]) -> MeasuringTask:
    return MeasuringTask(
        folder=str(folder), runtime=runtime, precision=precision, threads=1, clips=[[clip] for clip in clips], runs=6,
        warmup=1, tokens=None, language="en", task="transcribe",
    )  # fmt: skip


def test_clients_share_one_process(clips: list[str]) -> None:
    section = BenchmarkSection(threads=1, runs=6, warmup=1, clients=[3])
    runner = BenchmarkRunner(section, [[clip] for clip in clips], "en")
    (found,) = runner.concurrency(System("teacher", "teacher", "torch", "fp32", TEACHER))
    assert (found.name, found.clients, found.sessions, found.requests) == ("teacher", 3, 1, 6)
    assert found.p50_ms <= found.p95_ms
    assert found.tokens_per_s > found.requests_per_s, "a text has several tokens"
    # Three clients wait for one session, and in the end each waits for the requests of all three.
    assert found.mean_ms > 1e3 / found.requests_per_s


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
    assert near.cache == 10
    assert seen[-5:] == [8, 9, 10, 11, 12]
    far = token_at(200, transcriber, timed, read_audio(clips[0]), rounds=1)
    assert far.cache == seen[-3] == transcriber.format.max_length - 4, "the model holds 128"


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
    assert {(row.part, row.place) for row in rows} == {("encoder", "CPU"), ("decoder", "CPU")}
    assert sum(row.count for row in rows if row.op == "Conv") == 2, "the encoder's two convolutions, each once"
    quantised = {row.op for row in rows if "int8" in row.precision}
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

    places = {op: place for op, _, place in _litert_operators(Listed())}
    assert places == {"EMBEDDING": "CPU", "FC": "CPU XNNPACK", "ADD": "CPU XNNPACK", "TOPK": "CPU"}
