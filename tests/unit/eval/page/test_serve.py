"""`sottovoce serve`: what it serves, writes and refuses. tests/interop/test_page.py opens the page in a browser."""

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from eval.page.site import PAGE, Site, SiteHandler, build_site, onnx_precisions, write_site
from eval.page.web_packages import MEMBERS, web_packages
from eval.runtimes.onnx_runtime import SUFFIX
from recipes.core.errors import UserError
from tests.conftest import TEACHER


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An export folder with the JSON files of the demo's teacher, and placeholders for the weights."""
    folder = tmp_path / "runs" / "small" / "export" / "model"
    shutil.copytree(TEACHER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    features = json.loads((folder / "processor_config.json").read_text())["feature_extractor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(features))
    (folder / "onnx").mkdir()
    for size, name in ((3000, "int8"), (9000, "fp32")):
        for part in ("encoder_model", "decoder_model_merged"):
            (folder / "onnx" / f"{part}{SUFFIX[name]}.onnx").write_bytes(b"0" * size)
    (folder / "model.safetensors").write_bytes(b"weights that the page does not need")
    return folder


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in MEMBERS:
        (folder / name).write_text(name)
    return web_packages(folder)  # complete, so that nothing is downloaded


@pytest.fixture
def site(model: Path, packages: Path) -> Site:
    return build_site(model, packages, onnx_precisions(model), "small", offline=True)


def test_the_site_describes_the_model_and_holds_only_what_the_page_needs(site: Site) -> None:
    index = json.loads(site["page.json"])  # type: ignore[arg-type]
    assert [item["name"] for item in index["precisions"]] == ["int8", "fp32"]
    assert [item["dtype"] for item in index["precisions"]] == ["q8", "fp32"]
    assert index["window"] == 7 * 16_000
    assert index["languages"] == ["en"]
    assert {file.name for file in PAGE.iterdir()} < set(site)
    assert "model/model.safetensors" not in site
    assert "model/onnx/encoder_model_quantized.onnx" in site


def test_every_file_that_the_page_imports_is_in_the_site(site: Site) -> None:
    for file in PAGE.glob("*.js"):
        for line in file.read_text().splitlines():
            if line.startswith("import "):
                assert line.split("'")[-2].removeprefix("./") in site, f"{file.name}: {line}"
    assert "//" not in (PAGE / "index.html").read_text().replace("<!--", "")  # no address of another host


def test_external_weights_are_included(model: Path, packages: Path) -> None:
    (model / "onnx" / "encoder_model.onnx_data").write_bytes(b"0" * 50_000)
    precisions = onnx_precisions(model, ["fp32"])
    assert precisions[0].mb == 0.07
    assert "model/onnx/encoder_model.onnx_data" in build_site(model, packages, precisions, "small", offline=False)


def test_a_folder_without_a_complete_export_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match="in fp16, found fp32, int8"):
        onnx_precisions(model, ["fp16"])
    (model / "onnx" / "encoder_model.onnx").unlink()
    assert [precision.name for precision in onnx_precisions(model)] == ["int8"]
    (model / "onnx" / "decoder_model_merged_quantized.onnx").unlink()
    with pytest.raises(UserError, match="found none"):
        onnx_precisions(model)
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        onnx_precisions(model)


def test_a_static_folder_is_complete_and_never_replaces_anything_else(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "public" / "page"
    for _ in range(2):  # the second time the earlier page is replaced
        size = write_site(site, out)
        assert {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} == set(site)
        assert size == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="name another"):
        write_site(site, other)
    (out / "CNAME").write_text("example.org")
    with pytest.raises(UserError, match="found CNAME"):
        write_site(site, out)
    assert (out / "CNAME").is_file()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.fixture
def connection(site: Site) -> Iterator[http.client.HTTPConnection]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SiteHandler, site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield http.client.HTTPConnection("127.0.0.1", server.server_port)
        server.shutdown()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.js?new", "text/javascript"), ("/packages/ort.wasm", "application/wasm"),
     ("/model/onnx/encoder_model.onnx", "application/octet-stream")],
)  # fmt: skip
def test_the_server_sends_content_type_and_isolation_headers(
    connection: http.client.HTTPConnection, site: Site, method: str, path: str, kind: str
) -> None:
    connection.request(method, path)
    answer = connection.getresponse()
    source = site[path.partition("?")[0].lstrip("/") or "index.html"]
    expected = source if isinstance(source, bytes) else source.read_bytes()
    assert answer.read() == (expected if method == "GET" else b"")
    assert answer.getheader("Content-Length") == str(len(expected))
    assert answer.getheader("Content-Type", "").startswith(kind)
    assert answer.getheader("Cross-Origin-Embedder-Policy") == "require-corp"
    assert "default-src 'self'" in answer.getheader("Content-Security-Policy", "")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/model/model.safetensors", "/../serve.py", "/model/../../secret", "/etc/passwd"])
def test_the_server_sends_nothing_else(connection: http.client.HTTPConnection, method: str, path: str) -> None:
    connection.request(method, path)
    assert connection.getresponse().status == 404


def test_the_error_without_npm_names_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no npm to download it with; install node 20"):
        web_packages(tmp_path / "cache")
