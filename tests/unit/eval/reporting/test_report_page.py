import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from eval.reporting.plots import Point, place_labels, scatter
from eval.reporting.report_data import ReportData
from eval.reporting.report_page import highlight_differences, render_page
from eval.reporting.verdict_text import format_figure
from recipes.core.typed_json import parse_json

MACHINE = {
    "cpu": "A CPU",
    "cores": 2,
    "memory_gb": 8.0,
    "platform": "Linux",
    "python": "3.11",
    "versions": {"torch": "2"},
}
BARE = {
    "name": "bare",
    "date": "2026-01-01",
    "command": "sottovoce run x",
    "commit": None,
    "machine": MACHINE,
}


def page_of(report: dict[str, Any], clips: dict[str, str]) -> str:
    """Render a report given as the contents of report.json."""
    return render_page(parse_json(ReportData, report, "report.json"), clips)


RATE = {"value": 12.3, "low": 10.0, "high": 14.5}
CHANGE = {"value": 0.3, "low": -1.0, "high": 1.6, "p_value": 0.0004}


def beyond(role: str) -> dict[str, Any]:
    """What is scored besides the test set as it is."""
    versus = None if role == "teacher" else CHANGE
    worst = {"id": "an4/3", "set": "an4", "reference": "nine two", "teacher": "nine two", "text": "nine to <b>",
             "errors": 2, "teacher_errors": 0, "words": 2}  # fmt: skip
    row = {"wer": RATE, "words": 50, "substitutions": 3, "deletions": 2, "insertions": 1}
    return {
        "regression": None if versus is None else {"clips": 9, "worse": 0.25, "better": 0.125, "worst": [worst]},
        "hallucination": {
            "insertion_rate": RATE, "loops": 1, "clips": 9, "looping": [],
            "alone": {"clips": 2, "with_words": 1, "words": 3, "words_per_minute": 13.0,
                      "texts": [{"clip": "silence", "text": ""}, {"clip": "pink-0", "text": "ghost words here"}]}},
        "noise": [{"snr_db": snr_db, "wer": RATE, "versus_teacher": versus, "insertion_rate": 2.0}
                  for snr_db in (None, 10.0, 0.0)],
        "long_form": {"an4": {"sequential": row, "chunked": row,
                              "separate": row | {"wer": {"value": 40.0, "low": None, "high": None}}}},
    }  # fmt: skip


def spread_ms(p50: float) -> dict[str, float]:
    return {"p50": p50, "p95": 2 * p50, "max": 3 * p50}


def full() -> dict[str, Any]:
    roles = {"teacher-torch-fp32": "teacher", "student-torch-fp32": "student", "onnx-int8": "export"}
    rate = RATE
    systems = [
        {"name": name, "role": role, "runtime": "torch", "precision": "fp32", "macro": {"wer": 12.3, "cer": 4.0},
         "macro_intervals": {"wer": rate, "versus_teacher": None if role == "teacher" else CHANGE},
         "results": {"an4": {"wer": rate, "cer": rate, "utterances": 9, "words": 50,
                             "versus_teacher": None if role == "teacher" else CHANGE}}}
        | beyond(role)
        for name, role in roles.items()
    ]  # fmt: skip
    variants = [
        {"name": name, "role": role, "runtime": "torch", "precision": "fp32", "size_mb": 5.0 * index + 3,
         "cold_s": 0.4, "rtf": 0.02, "speedup": 4.0 - index,
         "speedup_interval": [3.9 - index, 4.1 - index],
         "peak_rss_mb": 120.0, "clip_ms": spread_ms(10.0 * (index + 1)), "mel_ms": spread_ms(1.0),
         "encoder_ms": spread_ms(4.0), "first_token_ms": spread_ms(6.0), "token_ms": None}
        for index, (name, role) in enumerate(roles.items())
    ]  # fmt: skip
    part = {"max_abs": 1e-5, "mean_abs": 1e-6, "psnr_db": 120.0}
    rows = [{"limit": "peak memory", "unit": "MB", "allowed": 500.0, "measured": 120.0, "kept": True, "low": 120.0,
             "high": 120.0, "safe": True, "note": "", "key": "peak_rss_mb"}]  # fmt: skip
    sizes = {"encoder": 1.9, "decoder": 2.5}
    doubtful = {
        "id": "an4/7",
        "reference": "five",
        "text": "nine",
        "seconds": 0.5,
        "error_rate": 1.0,
        "reason": None,
        "mean_logprob": -0.4,
    }
    return BARE | {
        "budget": {"device": "laptop", "description": "d.", "source": "s", "required": True, "kept": True,
                   "cheapest": "onnx-int8", "emulation": None,
                   "verdicts": [{"artefact": "onnx-int8", "kept": True, "safe": True, "rows": rows}]},
        "accuracy": {"normalizer": "basic", "bootstrap": 1000, "sets": ["an4"], "command": "python -m eval.accuracy x",
                     "noise": {"noises": ["pink", "white"], "utterances": 9},
                     "long_form": {"folder": None, "pause_seconds": 0.5, "modes": ["sequential", "chunked"],
                                   "sets": {"an4": {"recordings": 2, "minutes": 2.1}}},
                     "draft": {"clips": 9, "equal_text": 8, "drafted": 70, "accepted": 63, "passes": 21, "tokens": 84,
                               "acceptance": 0.9, "tokens_per_pass": 4.0},
                     "systems": systems, "samples": [{"id": "an4/1", "set": "an4", "reference": "ONE <two>",
                                                      "texts": dict.fromkeys(roles, "one <script>alert(1)</script>")}]},
        "latency": {"baseline": "teacher-torch-fp32", "threads": 2, "clips": 5, "runs": 100, "fixed_tokens": None,
                    "load_average": 0.2, "baseline_drift": 1.01, "turns": 50, "command": "c", "variants": variants},
        "parity": {"clips": 4, "command": "c", "artefacts": [
            {"name": "onnx-int8", "encoder": part, "logits": part, "equal_text": 0.97, "kept": True,
             "wer_increase": {"value": 0.4, "low": -1.0, "high": 1.9},
             "tolerance": {"psnr_db": 15.0, "equal_text": 0.6, "wer_increase": 3.0}}]},
        "training": {"command": "c", "steps": 3, "seconds": 2.0, "best_step": 2, "validation": [{"step": 2, "wer": 9.0}],  # noqa: E501
                     "train": [{"step": step, "loss": 1.0, "ce": 0.5, "kl": 0.2} for step in (1, 2, 3)]},
        "labels": {"command": "c", "utterances": 9, "errors": 1, "sampled": 2, "audio_hours": 0.01,
                   "mean_logprob": -0.1, "store_mb_per_hour": 1.5, "audio_seconds_per_second": 30.0,
                   "quality": {"command": "c", "kept": 8, "dropped": {"empty label": 1}, "rates": {"error_rate": 0.11},
                               "histogram": {"signal": "error rate", "edges": [0, 0.5, 1], "counts": [7, 2]},
                               "worst_kept": [doubtful], "best_dropped": [{**doubtful, "reason": "empty label"}]}},
        "corpus": {"splits": {"train": {"utterances": 9, "hours": 0.01}}, "refused": [{"path": "x.wav", "reason": "empty file"}]},  # noqa: E501
        "student": {"teacher": "t", "teacher_parameters_m": sizes, "student_parameters_m": sizes, "decoder_layers_kept": [0, 3]},  # noqa: E501
    }  # fmt: skip


def test_a_full_report_shows_every_system_and_loads_nothing_from_elsewhere() -> None:
    page = page_of(full(), {})
    for name in (
        "teacher-torch-fp32",
        "student-torch-fp32",
        "onnx-int8",
        "kept by onnx-int8",
        "x.wav (empty file)",
        "p &lt; 0.001",
        "nine <del>two</del> <ins>to &lt;b&gt;</ins>",
        "ghost words here",
        "no noise",
        "an4, chunked",
        "<td>70</td><td>63</td><td>90.0</td><td>21</td><td>4.00</td><td>8</td>",
    ):
        assert name in page
    assert page.count("<svg") == 6
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*['\"]?http", page)


def test_another_run_is_shown_for_comparison() -> None:
    report = full()
    other = {"name": "small-shape", "student": report["student"], "latency": report["latency"] | {"fixed_tokens": 50}}
    page = page_of(report | {"beside": [other]}, {})
    assert "For comparison: the run small-shape" in page
    assert page.index("50 tokens each") > page.index("For comparison: the run small-shape")


def test_compression_and_healing_are_shown() -> None:
    report = full()
    student = {"name": "student", "parameters_m": {"encoder": 2.0, "decoder": 1.3}, "encoder_macs_m": 878.4}
    layers = {"fc1": {"of": 192, "rank": 48, "replaced": True, "kept": 0.97},
              "fc2": {"of": 192, "rank": 192, "replaced": False, "kept": 1.0}}  # fmt: skip
    small = student | {"name": "low_rank", "encoder_macs_m": 473.1, "options": {"preset": "fast"}, "layers": layers}
    report |= {"compression": {"command": "c", "steps": [student, small]}, "healing": report["training"]}
    page = page_of(report, {})
    assert "preset fast<small>1 of 2 layers replaced, ranks 48 to 48</small>" in page
    assert "WER on validation audio during healing" in page
    assert page.count("<svg") == 8


def test_devices_clients_and_operators_are_shown() -> None:
    report = full()
    capped = {"limit": "memory cap", "unit": "MB", "allowed": 90.0, "measured": 120.0, "low": None, "high": None,
              "kept": False, "safe": True, "note": "does not fit: ended at 120 MB", "key": "memory_cap"}  # fmt: skip
    near = {**report["budget"]["verdicts"][0]["rows"][0], "low": 480.0, "high": 520.0, "safe": False, "note": "unsafe"}
    other = report["budget"] | {
        "device": "phone", "required": False, "kept": False, "cheapest": None,
        "emulation": {"cpu": "A CPU", "device_cpu": "an Arm CPU", "threads": 1, "threads_of_device": 1,
                      "memory_mb": 90.0, "factor": None, "text": "An emulation: so."},
        "verdicts": [{"artefact": "onnx-int8", "kept": False, "safe": True, "fits": False, "rows": [capped]},
                     {"artefact": "onnx-fp16", "kept": True, "safe": False, "rows": [near]}],
    }  # fmt: skip
    report["other_budgets"] = [other]
    row = report["latency"]["variants"][2]
    row |= {"runtime": "onnx", "precision": "int8"}
    row["token_at_cache"] = [{"cache": 10, "ms": 0.25}, {"cache": 124, "ms": 0.5}]
    row["placement"] = [{"part": "encoder", "op": "Conv", "precision": "float", "place": "CPU", "count": 2}]
    ended = row | {"fits": False, "reason": "ended at 120 MB", "clip_ms": None, "rtf": None}
    del ended["placement"], ended["token_at_cache"]
    report["latency"] |= {
        "variants": [row], "cpu": "A CPU",
        "emulated": [{"devices": ["phone"], "threads": 1, "memory_mb": 90.0, "variants": [ended]}],
        "concurrency": [{"name": "onnx-int8", "clients": 4, "sessions": 2, "requests": 100, "mean_ms": 41.0,
                         "p50_ms": 40.0, "p95_ms": 55.0, "requests_per_s": 98.0, "tokens_per_s": 1234.0,
                         "peak_rss_mb": 140.0}],
    }  # fmt: skip
    page = page_of(report, {})
    for said in (
        "phone: missed by every artefact", "An emulation: so.", "does not fit", "ended at 120 MB", "kept, within noise",
        "480 to 520, within noise", "at 124", "2 CPU float", "1234",
    ):  # fmt: skip
        assert said in page, said


def test_transcripts_are_escaped() -> None:
    assert "<script>" not in page_of(full(), {})
    assert highlight_differences("a b", "a <b>") == "a <del>b</del> <ins>&lt;b&gt;</ins>"


def test_the_page_is_the_same_each_time_and_its_ids_are_unique() -> None:
    page = page_of(full(), {})
    assert page == page_of(full(), {})
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert targets <= set(ids)


def test_a_bare_report_renders() -> None:
    assert "bare" in page_of(BARE, {})


def test_figures_are_readable() -> None:
    assert [format_figure(value) for value in (None, 0.0, 4.2e-6, 0.01234, 0.5, 1.2345, 123.456, 4567.8)] == [
        "–", "0", "4.20e-06", "0.0123", "0.500", "1.23", "123", "4568",
    ]  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 300)), min_size=1, max_size=12), st.floats(20, 150))
def test_labels_touch_neither_each_other_nor_a_marker(places: list[tuple[float, float]], width: float) -> None:
    labels = place_labels(places, [width] * len(places), (0, 500))
    for index, (start, middle) in enumerate(labels):
        for other, height in labels[:index]:
            assert abs(middle - height) >= 16 or abs(start - other) >= width
        for number, (x, y) in enumerate(places):
            assert number == index or not (start < x < start + width and abs(middle - y) < 8)


def test_a_single_point_can_be_plotted() -> None:
    assert "<svg" in scatter([Point("only", "export", 1.0, 2.0)], "x", "y", "p")
