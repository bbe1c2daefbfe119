"""A stand-in for the Hugging Face Hub on this machine, with the few endpoints that huggingface_hub uses for a push."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote

LARGE = (".safetensors", ".onnx", ".html")


@dataclass
class Hub:
    """The state of the stand-in, and its answers."""

    endpoint: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    """Whether each repository is private."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each file, by path."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Content of the large files, by SHA-256."""
    tags: dict[str, str] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    """SHA-256 of the large files in the order of their upload."""
    most_uploads: int = 1000
    """Number of uploads after which further ones are refused."""
    lock: Lock = field(default_factory=Lock)
    tokens: set[str] = field(default_factory=set)
    """Values of the requests' authorization headers."""

    def answer(self, verb: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and JSON body of the answer to a request."""
        path = unquote(path.partition("?")[0])
        values = json.loads(body) if body[:1] == b"{" and b"\n" not in body.strip() else {}
        head, _, last = path.rpartition("/")
        if path == "/api/repos/create":
            name = f"{values['organization']}/{values['name']}"
            exists = name in self.private
            self.private.setdefault(name, values["visibility"] == "private")
            return 409 if exists else 200, {"url": f"{self.endpoint}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/refs"):
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in self.tags.items()]
            return 200, {"branches": [], "converts": [], "tags": tags}
        if "/tree/" in path:
            return 200, [{"type": "file", "path": name, "oid": sha, "size": 1} for name, sha in self.files.items()]
        if "/preupload/" in path:
            modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in values["files"]}
            return 200, {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None}
                                   for name, mode in modes.items()]}  # fmt: skip
        if path.endswith("/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._batch(item["oid"]) for item in values["objects"]]}
        if verb == "PUT":
            return self._upload(last, body)
        if "/commit/" in path:
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            return 200, self._commit(repository, [json.loads(line) for line in body.splitlines()])
        if "/tag/" in path:
            self.tags[values["tag"]] = last
            return 200, {}
        repository = head.removeprefix("/api/models/") + "/" + last
        if repository in self.private:
            return 200, {"id": repository, "private": self.private[repository], "sha": (self.commits or ["0" * 40])[-1]}
        return 404, {"error": "not found"}

    def _batch(self, oid: str) -> dict[str, Any]:
        action = {"actions": {"upload": {"href": f"{self.endpoint}/objects/{oid}"}}}
        return {"oid": oid, "size": 1, **({} if oid in self.objects else action)}

    def _upload(self, oid: str, body: bytes) -> tuple[int, Any]:
        assert hashlib.sha256(body).hexdigest() == oid
        with self.lock:  # clients upload several files at once
            if len(self.uploads) >= self.most_uploads:
                return 403, {"error": "no more uploads"}
            self.objects[oid] = body
            self.uploads.append(oid)
        return 200, {}

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> dict[str, str]:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = hashlib.sha256(base64.b64decode(value["content"])).hexdigest()
            elif line["key"] == "lfsFile":
                assert value["oid"] in self.objects
                self.files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
        self.commits.append(f"{len(self.commits) + 1:040x}")
        return {"commitUrl": f"{self.endpoint}/{repository}/commit/{self.commits[-1]}", "commitOid": self.commits[-1]}


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a Hub on a free port of this machine while the body runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            hub.tokens.add(self.headers.get("authorization", ""))
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, value = hub.answer(self.command, self.path, body)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
