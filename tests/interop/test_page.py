"""`sottovoce serve` in a real browser, with real recordings: the page says what Python says, and asks nobody else.

`make interop` puts transformers.js' web build under .interop/page; without it, or without Chromium, this is skipped.

    SOTTOVOCE_EXPORT=runs/alnum-real/export/model make interop      another export than the demo teacher's
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
from tests.browser import CHROMIUM, LAST, READY, Browser, hear
from tests.conftest import ROOT, TEACHER

SPEECH = Path(os.environ.get("SPEECH", ROOT.parent / "shared" / "speech"))
PACKAGES = ROOT / ".interop" / "page"
CLIPS = int(os.environ.get("CLIPS", "5"))
"""From each corpus."""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
    pytest.mark.skipif(
        not all((PACKAGES / name).is_file() for name in MEMBERS), reason=".interop/page is not there; make interop"
    ),
]


@pytest.fixture(scope="module", autouse=True)
def asked_for(request: pytest.FixtureRequest) -> None:
    """Only where interop tests were named: a browser takes minutes."""
    if not any("interop" in str(argument) for argument in request.config.args):
        pytest.skip("takes minutes; make interop")


@pytest.fixture(scope="module")
def recordings() -> list[Path]:
    """Test clips of both corpora."""
    found: list[Path] = []
    for corpus in ("an4", "digits"):
        files = sorted(file for file in (SPEECH / corpus / "test").glob("*") if file.suffix in (".flac", ".wav"))
        if not files:
            pytest.skip(f"{SPEECH / corpus / 'test'}: no recordings; set SPEECH")
        found += files[:: len(files) // CLIPS][:CLIPS]
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """$SOTTOVOCE_EXPORT, or else the demo's teacher as ONNX."""
    if given := os.environ.get("SOTTOVOCE_EXPORT"):
        return Path(given)
    folder = tmp_path_factory.mktemp("demo") / "export" / "model"
    write_layout(TEACHER, folder)
    calibration = [[str(file)] for file in sorted((SPEECH / "an4" / "train").glob("*.flac"))[:64]]
    EXPORTERS["onnx"](ExportSource(load_model(TEACHER), TEACHER, calibration), folder, ["fp32", "int8"])
    return folder


@pytest.fixture(scope="module")
def say(model: Path) -> Callable[[Path, str], str]:
    """What Python says, by recording and precision."""

    def one(recording: Path, precision: str) -> str:
        transcriber = Transcriber(open_runtime("onnx", model, precision, 1), model, "en")
        return transcriber.transcribe([read_audio(recording)])[0].text

    return one


@contextmanager
def serving(log: Path, *command: str, folder: Path = ROOT) -> Iterator[str]:
    """The address of a server that says it on its first line; its log is complete afterwards."""
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
def server(model: Path, tmp_path: Path) -> Callable[[], AbstractContextManager[str]]:
    """Serves the model, its log kept."""
    command = ("eval.serve", str(model), "--packages", str(PACKAGES), "--port", "0")
    return partial(serving, tmp_path / "log", *command)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_page_says_what_python_says(
    precision: str, recordings: list[Path], say: Callable[[Path, str], str], tmp_path: Path,
    server: Callable[[], AbstractContextManager[str]], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with server() as address, Browser() as browser:
        browser.look(390, 800)
        browser.open(f"{address}?precision={precision}")
        heard = {file: hear(browser, file) for file in recordings}
        figures = browser.value("[...document.querySelectorAll('article:first-child dd')].map(item => item.innerText)")
        isolated, sideways = browser.value("[crossOriginIsolated, document.documentElement.scrollWidth - innerWidth]")
        requests, errors = list(browser.requests), list(browser.errors)
    said = {file: say(file, precision) for file in recordings}
    different = {file.stem: (said[file], heard[file]) for file in recordings if said[file] != heard[file]}
    with capsys.disabled():
        print(
            f"\nthe page, {precision}: {len(said) - len(different)} of {len(said)} recordings as Python says {figures}"
        )
    assert any(said.values())
    # The browser resamples 8 kHz in its own way, and rounds int8 in its own order: theirs is the share stated above.
    exact = [file for file in recordings if soundfile.info(file).samplerate == SAMPLE_RATE]
    if precision == "fp32":
        assert not {file.stem for file in exact} & set(different), different
    assert len(different) <= len(said) // 2, different
    assert errors == []
    # data: are the icons of the browser's own player.
    assert [url for url in requests if not url.startswith((address, f"blob:{address}", "data:"))] == []
    log = (tmp_path / "log").read_text()
    assert f'GET /model/onnx/encoder_model{SUFFIX[precision]}.onnx HTTP/1.1" 200' in log
    assert all('HTTP/1.1" 200' in line for line in log.splitlines()), log
    assert len(figures) == 4
    assert isolated
    assert sideways <= 0


def test_a_recording_longer_than_the_window_is_read_to_its_end(
    model: Path, recordings: list[Path], say: Callable[[Path, str], str], tmp_path: Path,
    server: Callable[[], AbstractContextManager[str]],
) -> None:  # fmt: skip
    window = json.loads((model / "preprocessor_config.json").read_text())["n_samples"]
    clip = read_audio(recordings[0])
    pause = np.zeros(window - len(clip) - SAMPLE_RATE // 2, np.float32)  # so that the quiet place is near its end
    long = tmp_path / "long.wav"
    soundfile.write(long, np.concatenate([clip, pause, clip]), SAMPLE_RATE, subtype="FLOAT")
    with server() as address, Browser() as browser:
        browser.open(f"{address}?precision=fp32")
        heard = hear(browser, long)
        assert browser.errors == []
    once = say(recordings[0], "fp32")
    assert heard.startswith(once)
    assert len(heard) > len(once) + 1


def test_a_static_folder_works_on_any_host_and_offline(model: Path, recordings: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "site"
    command = [sys.executable, "-m", "eval.serve", str(model), "--packages", str(PACKAGES), "--static", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    # A server that knows neither the headers nor anything else of the page.
    with Browser() as browser:
        with serving(tmp_path / "log", "http.server", "0", "--bind", "127.0.0.1", folder=folder) as address:
            browser.open(address)
            online = hear(browser, recordings[0])
            assert browser.value("crossOriginIsolated")
            assert browser.errors == []
            browser.until("caches.keys().then(async ([name]) => (await (await caches.open(name)).keys()).length >= 14)")
        browser.open(address)
        browser.until(READY)
        assert hear(browser, recordings[0]) == online != ""
        assert [url for url in browser.requests if not url.startswith((address, f"blob:{address}", "data:"))] == []


def test_the_microphone_is_read_as_one_speaks(
    recordings: list[Path], say: Callable[[Path, str], str], tmp_path: Path,
    server: Callable[[], AbstractContextManager[str]], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spoken = tmp_path / "spoken.wav"
    clip = read_audio(recordings[0])
    soundfile.write(spoken, np.concatenate([np.zeros(SAMPLE_RATE), clip]), SAMPLE_RATE, subtype="PCM_16")
    options = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={spoken}%noloop")
    with server() as address, Browser(*options) as browser:
        browser.open(f"{address}?precision=fp32")
        browser.until(READY)
        browser.value("document.querySelector('#record').click()")
        # Text while it still listens.
        browser.until("document.querySelector('article.busy .open')?.textContent")
        browser.value("new Promise(done => setTimeout(done, 3000))")
        browser.value("document.querySelector('#record').click()")
        heard = browser.until(LAST)
        assert browser.errors == []
    with capsys.disabled():
        print(f"\nthe microphone: {heard!r}; the file: {say(recordings[0], 'fp32')!r}")
    assert set(heard.split()) & set(say(recordings[0], "fp32").split())


def test_what_fails_is_said_in_one_line_and_the_page_goes_on(
    recordings: list[Path], tmp_path: Path, server: Callable[[], AbstractContextManager[str]]
) -> None:
    (tmp_path / "letter.wav").write_text("Dear Sir or Madam")
    alert = "document.querySelector('#alert').hidden ? '' : document.querySelector('#alert').textContent"
    with server() as address, Browser() as browser:
        browser.open(address)
        browser.until(READY)
        browser.choose("#files", [tmp_path / "letter.wav"])
        assert "letter.wav: expected audio" in browser.until(alert)
        browser.value("document.querySelector('#record').click()")
        browser.until(f"({alert}).includes('icrophone')")
        assert hear(browser, recordings[0])
        assert not browser.value(alert)
