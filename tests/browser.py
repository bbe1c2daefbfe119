"""Headless Chromium for the tests, driven with Playwright.

    python -m tests.browser ADDRESS CLIP OUT.webp [--width 1000] [--dark]     picture of the page of `sottovoce serve`

Chromium is the system's own (`apt install chromium`); Playwright's browser downloads are not used.
"""

import argparse
import base64
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage, Error, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; apt install chromium")

OPTIONS = (
    "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--mute-audio",
    "--autoplay-policy=no-user-gesture-required", "--use-fake-ui-for-media-stream",
)  # fmt: skip
"""The sandbox does not work as root. The others stop Chromium's own network requests and its questions to the user."""

SECONDS = 120
"""Time limit of everything that is waited for."""


@dataclass
class Browser:
    """One page, with what it and its workers have done so far."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Every address that the page, its frames and its workers have requested."""
    errors: list[str] = field(default_factory=list)
    """Exceptions that were not caught, and errors on the console."""

    def open(self, address: str) -> None:
        """Go to an address. Wait with `until` for what the page does next."""
        # Not until it is loaded, for a page that installs a service worker reloads itself meanwhile.
        self.page.goto(address, wait_until="commit")

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page. A promise is awaited."""
        return self.page.evaluate(expression)

    def until(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true and return its value. The page may reload meanwhile."""
        # Playwright's wait_for_function calls eval in the page, which the page's Content-Security-Policy forbids.
        end = time.monotonic() + SECONDS
        while True:
            with suppress(Error):  # a page that is reloading, or one that is not complete yet
                if value := self.page.evaluate(expression):
                    return value
            assert time.monotonic() < end, f"{expression}: not true within {SECONDS} s; {self.page.inner_text('body')}"
            self.page.wait_for_timeout(100)

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files of this machine in a file input."""
        self.page.set_input_files(selector, list(files))

    def resize(self, width: int, height: int) -> None:
        """Set the size of the screen in CSS pixels."""
        self.page.set_viewport_size({"width": width, "height": height})

    def screenshot(self, file: Path) -> None:
        """Write what the screen shows as .png or .webp. Playwright itself writes no WebP, but Chromium does."""
        options = {"format": file.suffix[1:]} | ({"quality": 85} if file.suffix == ".webp" else {})
        session = self.page.context.new_cdp_session(self.page)
        file.write_bytes(base64.b64decode(session.send("Page.captureScreenshot", options)["data"]))


@contextmanager
def open_browser(*options: str, dark: bool = False) -> Iterator[Browser]:
    """Start Chromium with more command-line options and an empty page."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*OPTIONS, *options])
        context = chromium.new_context(color_scheme="dark" if dark else "light", permissions=["microphone"])
        context.set_default_timeout(1000 * SECONDS)
        browser = Browser(context.new_page())
        context.on("request", lambda request: browser.requests.append(request.url))
        context.on("weberror", lambda error: browser.errors.append(str(error.error)))
        context.on("console", lambda message: _note_error(browser, message))
        try:
            yield browser
        finally:
            chromium.close()


def _note_error(browser: Browser, message: ConsoleMessage) -> None:
    if message.type in ("error", "assert"):
        browser.errors.append(f"{message.text} {message.location['url']}")


READY = "document.querySelector('#state')?.classList.contains('ready')"
"""Whether the page of `sottovoce serve` has loaded its model."""
LAST_TEXT = "document.querySelector('article:not(.busy) .text')?.textContent"
"""The text of the newest recording on it that is finished."""


def transcribe_on_page(browser: Browser, clip: Path) -> str:
    """Give an audio file to the page of `sottovoce serve` and return the text that it shows."""
    browser.until(READY)
    finished = "document.querySelectorAll('article:not(.busy)').length"
    before = browser.value("document.querySelectorAll('article').length")
    browser.choose("#files", clip)
    browser.until(f"{finished} > {before} || !document.querySelector('#alert').hidden")
    alert = browser.value("document.querySelector('#alert').hidden || document.querySelector('#alert').textContent")
    assert alert is True, alert
    return str(browser.value(LAST_TEXT))


def main() -> None:
    """Take a picture of the page after it has transcribed a clip."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("address")
    parser.add_argument("clip", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=620)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    with open_browser(dark=args.dark) as browser:
        browser.resize(args.width, args.height)
        browser.open(args.address)
        text = transcribe_on_page(browser, args.clip)
        browser.screenshot(args.out)
        print(json.dumps({"text": text, "errors": browser.errors}))


if __name__ == "__main__":
    main()
