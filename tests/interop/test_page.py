"""The page of `sottovoce serve` in a real browser: it transcribes as Python does, and contacts no other host.

`make interop` puts transformers.js' web build under .interop/page. Without it or without Chromium, these are skipped.

    SOTTOVOCE_EXPORT=runs/alnum-real/export/model make interop      test another export than the demo teacher's
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.exporters.export_source import ExportSource
from distill.exporters.exporter_registry import EXPORTERS
from distill.exporters.folder_layout import write_layout
from eval.audio.recordings import SAMPLE_RATE, read_audio
from eval.decoding.transcriber import Transcriber
from eval.page.web_packages import MEMBERS
from eval.runtimes.onnx_runtime import SUFFIX
from eval.runtimes.registry import open_runtime
from eval.runtimes.torch_runtime import load_model
from tests.browser import LAST_TEXT, READY, needs_chromium, open_browser, transcribe_on_page
from tests.conftest import ROOT, SPEECH, TEACHER

PACKAGES = ROOT / ".interop" / "page"
CLIPS = int(os.environ.get("CLIPS", "5"))
"""Number of clips from each corpus."""

pytestmark = [
    needs_chromium,
    pytest.mark.skipif(
        not all((PACKAGES / name).is_file() for name in MEMBERS),
        reason=".interop/page does not hold transformers.js; make interop",
    ),
]

Server = Callable[[], AbstractContextManager[str]]


@pytest.fixture(scope="module", autouse=True)
def only_when_asked_for(request: pytest.FixtureRequest) -> None:
    """Skip unless the interop tests were named on the command line: a browser takes minutes."""
    if not any("interop" in str(argument) for argument in request.config.args):
        pytest.skip("takes minutes; make interop")


@pytest.fixture(scope="module")
def recordings() -> list[Path]:
    """Test clips of two corpora."""
    clips: list[Path] = []
    for corpus in ("an4", "digits"):
        files = sorted(file for file in (SPEECH / corpus / "test").glob("*") if file.suffix in (".flac", ".wav"))
        if not files:
            pytest.skip(f"{SPEECH / corpus / 'test'}: holds no recordings; set SPEECH")
        clips += files[:: len(files) // CLIPS][:CLIPS]
    return clips


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """$SOTTOVOCE_EXPORT, or else the demo's teacher exported to ONNX."""
    if folder := os.environ.get("SOTTOVOCE_EXPORT"):
        return Path(folder)
    export = tmp_path_factory.mktemp("demo") / "export" / "model"
    write_layout(TEACHER, export)
    calibration = [[str(file)] for file in sorted((SPEECH / "an4" / "train").glob("*.flac"))[:64]]
    EXPORTERS["onnx"](ExportSource(load_model(TEACHER), TEACHER, calibration), export, ["fp32", "int8"])
    return export


@pytest.fixture(scope="module")
def transcribe(model: Path) -> Callable[[Path, str], str]:
    """Return the text of a recording from the same ONNX files in Python, at a precision."""

    def one(recording: Path, precision: str) -> str:
        transcriber = Transcriber(open_runtime("onnx", model, precision, 1), model, "en")
        return transcriber.transcribe([read_audio(recording)])[0].text

    return one


@contextmanager
def serving(log: Path, *command: str, folder: Path = ROOT) -> Iterator[str]:
    """Start a server and yield its address, which it prints on its first line. `log` is complete after the body."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *command], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            yield next(word.strip("()") for word in line.split() if "http://" in word)
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Server:
    """`sottovoce serve` with the model; the log of its requests is in `tmp_path / "log"`."""
    command = ("eval.serve", str(model), "--packages", str(PACKAGES), "--port", "0")
    return partial(serving, tmp_path / "log", *command)


def to_other_hosts(requests: list[str], address: str) -> list[str]:
    """Return the requests that left the page. `data:` addresses are icons of the browser's own audio player."""
    return [url for url in requests if not url.startswith((address, f"blob:{address}", "data:"))]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_page_transcribes_as_python_does(
    precision: str, recordings: list[Path], transcribe: Callable[[Path, str], str], tmp_path: Path, server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with server() as address, open_browser() as browser:
        browser.resize(390, 800)
        browser.open(f"{address}?precision={precision}")
        page_texts = {file: transcribe_on_page(browser, file) for file in recordings}
        figures = browser.value("[...document.querySelectorAll('article:first-child dd')].map(item => item.innerText)")
        isolated, overflow = browser.value("[crossOriginIsolated, document.documentElement.scrollWidth - innerWidth]")
        requests, errors = list(browser.requests), list(browser.errors)
    texts = {file: transcribe(file, precision) for file in recordings}
    different = {file.stem: (texts[file], page_texts[file]) for file in recordings if texts[file] != page_texts[file]}
    equal = len(texts) - len(different)
    with capsys.disabled():
        print(f"\nthe page, {precision}: {equal} of {len(texts)} recordings as in Python {figures}")
    assert any(texts.values())
    # The browser resamples 8 kHz recordings in its own way and sums int8 products in its own order, so that texts may
    # differ; how many do is printed above.
    exact = [file for file in recordings if soundfile.info(file).samplerate == SAMPLE_RATE]
    if precision == "fp32":
        assert not {file.stem for file in exact} & set(different), different
    assert len(different) <= len(texts) // 2, different
    assert errors == []
    assert to_other_hosts(requests, address) == []
    assert any("/model/onnx/" in url for url in requests), "the worker's requests are recorded too"
    log = (tmp_path / "log").read_text()
    assert f'GET /model/onnx/encoder_model{SUFFIX[precision]}.onnx HTTP/1.1" 200' in log
    assert all('HTTP/1.1" 200' in line for line in log.splitlines()), log
    assert len(figures) == 4
    assert isolated
    assert overflow <= 0


def test_a_recording_longer_than_the_window_is_transcribed_to_its_end(
    model: Path, recordings: list[Path], transcribe: Callable[[Path, str], str], tmp_path: Path, server: Server
) -> None:
    window = json.loads((model / "preprocessor_config.json").read_text())["n_samples"]
    clip = read_audio(recordings[0])
    pause = np.zeros(window - len(clip) - SAMPLE_RATE // 2, np.float32)  # puts the quiet place near the window's end
    long = tmp_path / "long.wav"
    soundfile.write(long, np.concatenate([clip, pause, clip]), SAMPLE_RATE, subtype="FLOAT")
    with server() as address, open_browser() as browser:
        browser.open(f"{address}?precision=fp32")
        text = transcribe_on_page(browser, long)
        assert browser.errors == []
    once = transcribe(recordings[0], "fp32")
    assert text.startswith(once)
    assert len(text) > len(once) + 1


def test_a_static_folder_works_on_any_host_and_offline(model: Path, recordings: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "site"
    command = [sys.executable, "-m", "eval.serve", str(model), "--packages", str(PACKAGES), "--static", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    with open_browser() as browser:
        # Python's own server does not set the headers that the page needs.
        with serving(tmp_path / "log", "http.server", "0", "--bind", "127.0.0.1", folder=folder) as address:
            browser.open(address)
            online = transcribe_on_page(browser, recordings[0])
            assert browser.value("crossOriginIsolated")
            assert browser.errors == []
            browser.until("caches.keys().then(async ([name]) => (await (await caches.open(name)).keys()).length >= 14)")
        browser.open(address)
        browser.until(READY)
        assert transcribe_on_page(browser, recordings[0]) == online != ""
        assert to_other_hosts(browser.requests, address) == []


def test_the_microphone_is_transcribed_while_one_speaks(
    recordings: list[Path], transcribe: Callable[[Path, str], str], tmp_path: Path, server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    speech = tmp_path / "spoken.wav"
    clip = read_audio(recordings[0])
    soundfile.write(speech, np.concatenate([np.zeros(SAMPLE_RATE), clip]), SAMPLE_RATE, subtype="PCM_16")
    options = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={speech}%noloop")
    with server() as address, open_browser(*options) as browser:
        browser.open(f"{address}?precision=fp32")
        browser.until(READY)
        browser.page.click("#record")
        browser.until("document.querySelector('article.busy .open')?.textContent")  # text before the recording ends
        browser.page.wait_for_timeout(3000)
        browser.page.click("#record")
        text = browser.until(LAST_TEXT)
        assert browser.errors == []
    file_text = transcribe(recordings[0], "fp32")
    with capsys.disabled():
        print(f"\nthe microphone: {text!r}; the file: {file_text!r}")
    assert set(text.split()) & set(file_text.split())


def test_an_error_is_shown_in_one_line_and_the_page_stays_usable(
    recordings: list[Path], tmp_path: Path, server: Server
) -> None:
    (tmp_path / "letter.wav").write_text("Dear Sir or Madam")
    alert = "document.querySelector('#alert').hidden ? '' : document.querySelector('#alert').textContent"
    with server() as address, open_browser() as browser:
        browser.open(address)
        browser.until(READY)
        browser.choose("#files", tmp_path / "letter.wav")
        assert "letter.wav: expected audio" in browser.until(alert)
        browser.page.click("#record")  # this machine has no microphone
        browser.until(f"({alert}).includes('icrophone')")
        assert transcribe_on_page(browser, recordings[0])
        assert not browser.value(alert)
