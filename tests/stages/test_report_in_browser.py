"""The report in a real browser: no script error, plots drawn, clips play, nothing wider than the screen."""

import json
import queue
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Runs inside the page and sends what it found to the server that the page came from.
PROBE = """
<script>
const errors = [];
addEventListener("error", event => errors.push(event.message || String(event.target.src)), true);
addEventListener("load", async () => {
  const audios = [...document.querySelectorAll("audio")];
  const played = await Promise.all(audios.slice(0, 4).map(audio => new Promise(done => {
    audio.muted = true;
    audio.ontimeupdate = () => { if (audio.currentTime > 0.1) done(audio.duration); };
    audio.onerror = () => done(0);
    setTimeout(() => done(0), 8000);
    audio.play().catch(error => errors.push(String(error)));
  })));
  const plots = [...document.querySelectorAll("figure svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    return {width: box.width, height: box.height, paths: svg.querySelectorAll("path").length};
  });
  const root = document.documentElement;
  const found = {errors, plots, audios: audios.length, played, overflow: root.scrollWidth - root.clientWidth,
                 requests: performance.getEntriesByType("resource").map(item => item.name)
                   .filter(name => !name.startsWith("data:")),
                 paper: getComputedStyle(document.body).backgroundColor};
  fetch("/found", {method: "POST", body: JSON.stringify(found)});
});
</script>
"""


def look(page: Path, folder: Path, width: int) -> dict[str, Any]:
    """The page as Chromium shows it, served from here: what the probe found in it."""
    assert CHROMIUM is not None
    html = page.read_text().replace("<head>", f"<head>{PROBE}", 1).encode()
    # In a frame, since a window of Chromium's is at least 500 pixels wide.
    frame = f'<link rel="icon" href="data:,"><iframe src="/report" width="{width}" height="900"></iframe>'.encode()
    pages = {"/": frame, "/report": html}
    answers: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in pages else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))

        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio",
             "--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0",
             f"--user-data-dir={folder / 'profile'}", f"--window-size={width + 100},1000",
             f"http://127.0.0.1:{server.server_port}/"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return answers.get(timeout=90)
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_works_in_a_browser(finished: Path, tmp_path: Path, width: int) -> None:
    page = finished.parent / "runs" / "small" / "report" / "report.html"
    found = look(page, tmp_path, width)
    assert found["errors"] == []
    assert found["requests"] == []
    assert found["audios"] == 2
    assert all(seconds > 0.3 for seconds in found["played"]), found["played"]
    assert len(found["plots"]) >= 4
    assert all(plot["width"] > 200 and plot["height"] > 100 and plot["paths"] > 5 for plot in found["plots"])
    assert found["overflow"] <= 0
