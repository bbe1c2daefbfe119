"""Progress where there is no terminal: one line every tenth."""

from pathlib import Path

import pytest

from recipes.core.logs import configure_logging, log, log_to_file
from recipes.core.progress import Progress, track


@pytest.fixture(autouse=True)
def every_line(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops here take no time; show their lines all the same, but in the test of that."""
    if "quick" not in request.node.name:
        monkeypatch.setattr("recipes.core.progress.MIN_SECONDS", 0.0)


def test_a_quick_loop_writes_its_last_line_only(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    assert len(list(track(range(400), "corpus", unit="file"))) == 400
    assert capsys.readouterr().err == "corpus: 400 of 400 files, 00:00 passed\n"


def test_a_line_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    assert list(track(range(400), "labels", unit="batch")) == list(range(400))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("labels: 40 of 400 batches, 00:00 passed, about")
    assert lines[-1] == "labels: 400 of 400 batches, 00:00 passed"


def test_a_resumed_loop_counts_from_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    with Progress("train", 100, initial=55) as progress:
        for _ in range(45):
            progress.update(figures="loss 1.00")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["60", "70", "80", "90", "100"]
    assert lines[0].endswith("; loss 1.00")


def test_an_unknown_total_and_a_silent_process(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    assert sum(1 for _ in track(iter(range(2500)), "rows", unit="row")) == 2500
    assert sum(1 for _ in track(range(2500), "rows", disable=True)) == 2500
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1000", "2000"]


def test_the_log_file_holds_messages_and_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "logs" / "train.log"
    with pytest.raises(KeyError, match="lost"), log_to_file(file):
        log.info("going on from step 7")
        raise KeyError("lost")
    text = file.read_text()
    assert "INFO    going on from step 7" in text
    assert "ended by KeyError" in text
    assert "Traceback" in text
    assert "Traceback" not in capsys.readouterr().err
    log.info("after the stage")
    assert file.read_text() == text
