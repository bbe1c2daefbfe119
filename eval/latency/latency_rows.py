"""The fields of `benchmark/latency.json`, and the task and results of the processes that measure.

Names end in their unit: `_ms` milliseconds, `_s` seconds, `_mb` MB (10^6 bytes), `_mhz` megahertz, `_m` millions. The
dataclasses have the keys of the JSON file as their fields. Only the standard library is imported, since the measuring
processes import this module and their memory is part of what they measure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MeasuringTask:
    """What a measuring process is asked to do; it reads this as JSON from its stdin."""

    folder: str
    """Model folder."""
    runtime: str
    """One of `eval.runtimes.registry.RUNTIMES`."""
    precision: str
    threads: int
    """Threads that the runtime may use; the process is pinned to as many cores."""
    clips: Sequence[Sequence[str]]
    """References to the recordings, as in `Utterance.audio`."""
    runs: int
    """Timed transcriptions; the clips are repeated as needed."""
    warmup: int
    """Untimed transcriptions before those."""
    tokens: int | None
    """Decode exactly this many tokens of each clip; None stops at the end of the text."""
    language: str | None
    task: str
    """`transcribe` or `translate`."""
    details: bool = False
    """Also measure `token_at_cache` and `placement`."""
    clients: int = 1
    """Clients that send clips at the same time, for `eval.latency.concurrency`."""


@dataclass(frozen=True)
class Percentiles:
    """Median, 95th percentile and maximum of durations in milliseconds."""

    p50: float
    p95: float
    max: float


@dataclass(frozen=True)
class TokenAtCache:
    """Time of one decoder step when the decoder's cache already holds tokens."""

    cache: int
    """Tokens in the cache."""
    ms: float


@dataclass(frozen=True)
class OperatorCount:
    """How many operators of one kind run in one place with one set of element types."""

    part: str
    """`encoder` or `decoder`."""
    op: str
    """Name of the operator; with OpenVINO followed by its kernel."""
    precision: str
    """Element types, joined by ` + `."""
    place: str
    """Device or execution provider."""
    count: int


@dataclass(frozen=True)
class SystemTiming:
    """What `eval.latency.timing` measures of one system in a process of its own."""

    cold_s: float
    """From opening the model to the end of the first transcription."""
    mel_ms: Percentiles
    """Log-mel features of a clip."""
    encoder_ms: Percentiles
    """Encoder."""
    prompt_ms: Percentiles
    """First decoder call, which reads the prompt."""
    first_token_ms: Percentiles
    """Log-mel, encoder and prompt together."""
    token_ms: Percentiles | None
    """Each later decoder step; None if no clip has a second token."""
    clip_ms: Percentiles
    """Whole transcription of a clip."""
    rtf: float
    """Real-time factor: computing time over audio duration."""
    peak_rss_mb: float
    """Peak resident memory of the process."""
    audio_s: float
    """Audio in all timed runs."""
    tokens: int
    """Tokens in all timed runs."""
    noise: Mapping[str, tuple[float, float]] | None
    """Lowest and highest value over whole passes through the clips, by figure (`clip_p50_ms`, `clip_p95_ms`, `rtf`);
    None if there were fewer than two passes."""
    token_at_cache: Sequence[TokenAtCache] | None = None
    placement: Sequence[OperatorCount] | None = None
    """Where the operators run; None if the runtime does not report it."""


@dataclass(frozen=True)
class RepeatedMeasurement:
    """One of several measurements of the same system."""

    clip_p50_ms: float
    clip_p95_ms: float
    rtf: float
    peak_rss_mb: float


@dataclass(frozen=True)
class LatencyRow:
    """Speed, memory and size of one system. Fields of `SystemTiming` are None if the system does not fit."""

    name: str
    """Such as `teacher-torch-fp32`, `onnx-int8`."""
    role: str
    """`teacher`, `student` or `export`."""
    runtime: str
    precision: str
    size_mb: float
    """Size of the weight files."""
    peak_rss_mb: float
    """Peak resident memory; if the system does not fit, the memory at which it was ended."""
    clip_ms: Percentiles | None
    rtf: float | None
    fits: bool = True
    """False if the process was ended at the memory cap of its device."""
    reason: str | None = None
    """Why the system does not fit, for the reader; None if it fits."""
    parameters_m: float | None = None
    """Parameters, only for PyTorch models."""
    load_average: float | None = None
    """One-minute load average before the measurement."""
    cpu_mhz: float | None = None
    """Clock frequency before the measurement."""
    cold_s: float | None = None
    mel_ms: Percentiles | None = None
    encoder_ms: Percentiles | None = None
    prompt_ms: Percentiles | None = None
    first_token_ms: Percentiles | None = None
    token_ms: Percentiles | None = None
    audio_s: float | None = None
    tokens: int | None = None
    noise: Mapping[str, tuple[float, float]] | None = None
    """Lowest and highest value by figure: over passes through the clips as in `SystemTiming`, or over
    `measurements`."""
    token_at_cache: Sequence[TokenAtCache] | None = None
    placement: Sequence[OperatorCount] | None = None
    measurements: Sequence[RepeatedMeasurement] | None = None
    """All measurements, if the system was measured again because it was close to a limit of a budget; the row itself
    is the one with the median `clip_p95_ms`."""
    speedup: float | None = None
    """Median of the baseline's time of a clip over this system's, both processes playing the clips alternately; None
    in rows for emulated devices."""
    speedup_interval: tuple[float, float] | None = None
    """95 % bootstrap interval of `speedup`."""

    @property
    def clip_p50_ms(self) -> float | None:
        """Median time of a clip; None if the system does not fit."""
        return self.clip_ms.p50 if self.clip_ms else None

    @property
    def clip_p95_ms(self) -> float | None:
        """95th percentile of the time of a clip; None if the system does not fit."""
        return self.clip_ms.p95 if self.clip_ms else None


@dataclass(frozen=True)
class EmulatedRun:
    """The systems measured with the threads and the memory cap of one or more devices."""

    devices: Sequence[str]
    """Names of the budgets that ask for these settings."""
    threads: int
    """At most the cores of the measuring machine."""
    memory_mb: float | None
    """Memory cap; None for none."""
    variants: Sequence[LatencyRow]


@dataclass(frozen=True)
class ClientLoad:
    """What `eval.latency.concurrency` measures of one process that serves several clients."""

    clients: int
    sessions: int
    """Model sessions in the process."""
    requests: int
    mean_ms: float
    """Mean time that a client waits for an answer."""
    p50_ms: float
    p95_ms: float
    requests_per_s: float
    tokens_per_s: float
    peak_rss_mb: float


@dataclass(frozen=True)
class ConcurrencyRow(ClientLoad):
    """The same with the name of the system."""

    name: str


@dataclass(frozen=True)
class LatencyReport:
    """The contents of `benchmark/latency.json`."""

    baseline: str
    """Name of the system that the speed-ups are relative to."""
    threads: int
    clips: int
    """Test clips that were transcribed one by one."""
    runs: int
    """Timed transcriptions of each system."""
    fixed_tokens: int | None
    """Tokens decoded of each clip; None if decoding stops at the end of the text."""
    load_average: float
    """One-minute load average at the start."""
    baseline_drift: float
    """Median clip time of the baseline at the end over that at the start."""
    command: str
    """Command line of the stage."""
    variants: Sequence[LatencyRow]
    """The teacher first, then the student, then the exports."""
    turns: int | None = None
    """Clips that each system and the baseline play alternately for the speed-up; None in files of older versions."""
    cpu: str = "this machine"
    """Processor of the measuring machine."""
    emulated: Sequence[EmulatedRun] = ()
    concurrency: Sequence[ConcurrencyRow] = ()

    def emulated_run(self, device: str) -> EmulatedRun | None:
        """Return the run with the settings of `device`; None if the device asks for the benchmark's own settings."""
        return next((run for run in self.emulated if device in run.devices), None)

    def rows_for_device(self, device: str) -> Sequence[LatencyRow]:
        """Return the rows that the budget of `device` is judged by."""
        run = self.emulated_run(device)
        return run.variants if run else self.variants
