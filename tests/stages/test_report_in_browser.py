"""The report in a real browser: no script fails, plots are drawn, clips play, and nothing is wider than the screen."""

from pathlib import Path

import pytest

from tests.browser import needs_chromium, open_browser

# For each clip its duration in seconds, or 0 if it does not play.
PLAYED = """
Promise.all([...document.querySelectorAll("audio")].map(audio => new Promise(done => {
  audio.ontimeupdate = () => { if (audio.currentTime > 0.1) done(audio.duration); };
  audio.onerror = () => done(0);
  setTimeout(() => done(0), 8000);
  audio.play().catch(() => done(0));
})))
"""
PLOTS = """
[...document.querySelectorAll("figure svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  return {width: box.width, height: box.height, paths: svg.querySelectorAll("path").length};
})
"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_works_in_a_browser(finished: Path, width: int) -> None:
    page = (finished.parent / "runs" / "small" / "report" / "report.html").as_uri()
    with open_browser() as browser:
        browser.resize(width, 900)
        browser.open(page)
        browser.until("document.readyState === 'complete'")
        played, plots, wider = (browser.value(expression) for expression in (PLAYED, PLOTS, WIDER))
        assert browser.errors == []
        assert [address for address in browser.requests if not address.startswith("data:")] == [page]
    assert len(played) == 2
    assert all(seconds > 0.3 for seconds in played), played
    assert len(plots) >= 4
    assert all(plot["width"] > 200 and plot["height"] > 100 and plot["paths"] > 5 for plot in plots)
    assert wider <= 0
