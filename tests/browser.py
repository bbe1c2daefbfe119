"""Headless Chromium over the DevTools protocol, spoken through a pipe: needs nothing but Python.

python -m tests.browser ADDRESS CLIP OUT.webp [--width 1280] [--dark]     a picture of the page, for the docs
"""

import argparse
import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page and the workers below it."""

    def __init__(self, *options: str):
        assert CHROMIUM is not None
        self.requests: list[str] = []
        """Every address asked for, by the page or a worker."""
        self.errors: list[str] = []
        """Exceptions and what the console called errors."""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._number = 0
        commands, self._write = os.pipe()
        self._read, events = os.pipe()
        # Chromium reads from 3 and writes to 4, which may be ours: both ends move out of the way first.
        low = [fcntl.fcntl(end, fcntl.F_DUPFD, 50) for end in (commands, events)]
        self._process = subprocess.Popen(
            ["bash", "-c", 'r=$1; w=$2; shift 2; exec "$@" 3<&$r 4>&$w', "bash", *map(str, low), CHROMIUM, "--headless",
             "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio", "--remote-debugging-pipe",
             "--autoplay-policy=no-user-gesture-required", "--use-fake-ui-for-media-stream",
             f"--user-data-dir={self._profile.name}", *options, "about:blank"],
            pass_fds=low, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (commands, events, *low):
            os.close(end)
        self._left = b""
        page = next(item for item in self.ask("Target.getTargets")["targetInfos"] if item["type"] == "page")
        self.page = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self._watch(self.page)
        self.ask("Page.enable", self.page)

    def _watch(self, session: str) -> None:
        """Hear of the requests and errors of a page or worker, and of workers below it from their first request on."""
        for domain in ("Runtime.enable", "Network.enable", "Log.enable"):
            self._send(domain, session)
        self._send("Target.setAutoAttach", session, autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        self._send("Runtime.runIfWaitingForDebugger", session)

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> int:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        return self._number

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the protocol."""
        number = self._send(method, session, **parameters)
        while (message := self._receive()).get("id") != number:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        found: dict[str, Any] = message["result"]
        return found

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium ended"
            self._left += part
        line, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params") or {})
        return message

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Target.attachedToTarget":
            self._watch(said["sessionId"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(item.get("value", item.get("description"))) for item in said["args"]))

    def open(self, address: str) -> None:
        """Go to an address."""
        self.ask("Page.navigate", self.page, url=address)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression in the page; a promise is awaited."""
        done = self.ask("Runtime.evaluate", self.page, expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str, seconds: float = 120) -> Any:
        """The expression's value once it is true."""
        end = time.monotonic() + seconds
        while not (found := self._tried(expression)):
            assert time.monotonic() < end, (
                f"{expression}: not within {seconds} s; {self._tried('document.body.innerText')}"
            )
            time.sleep(0.1)
        return found

    def _tried(self, expression: str) -> Any:
        """A page that is being left has no value to give."""
        try:
            return self.value(expression)
        except AssertionError:
            return None

    def choose(self, selector: str, files: Sequence[Path]) -> None:
        """Files of this machine in a file input."""
        root = self.ask("DOM.getDocument", self.page)["root"]["nodeId"]
        node = self.ask("DOM.querySelector", self.page, nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", self.page, nodeId=node, files=[str(file.resolve()) for file in files])

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the screen in CSS pixels, and its colours."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            self.page,
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", self.page, features=[scheme])

    def picture(self, file: Path) -> None:
        """What the screen shows, as .png or .webp."""
        options = {"format": file.suffix[1:]} | ({"quality": 85} if file.suffix == ".webp" else {})
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", self.page, **options)["data"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()


READY = "document.querySelector('#state')?.classList.contains('ready')"
LAST = "document.querySelector('article:not(.busy) .text')?.textContent"


def hear(browser: Browser, clip: Path) -> str:
    """What the page hears in a file that is given to it."""
    browser.until(READY)
    before = browser.value("document.querySelectorAll('article').length")
    browser.choose("#files", [clip])
    browser.until(
        f"document.querySelectorAll('article:not(.busy)').length > {before} || !document.querySelector('#alert').hidden"
    )
    assert browser.value("document.querySelector('#alert').hidden"), browser.value(
        "document.querySelector('#alert').textContent"
    )
    return str(browser.value(LAST))


def main(done: Callable[[str], None] = print) -> None:
    """See this module's head."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("clip", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=620)
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    with Browser() as browser:
        browser.look(given.width, given.height, dark=given.dark)
        browser.open(given.address)
        done(hear(browser, given.clip))
        browser.picture(given.out)
        done("\n".join(browser.errors))


if __name__ == "__main__":
    main()
