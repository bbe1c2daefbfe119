"""`sottovoce serve`: what is served and written, and what is refused; tests/interop/test_page.py has a browser."""

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from eval.page.site import PAGE, Handler, Site, build_site, onnx_precisions, write_site
from eval.page.web_packages import MEMBERS, web_packages
from eval.runtimes.onnx_runtime import SUFFIX
from recipes.core.errors import UserError
from tests.conftest import TEACHER


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The demo teacher's JSONs, with files where weights would be."""
    folder = tmp_path / "runs" / "small" / "export" / "model"
    shutil.copytree(TEACHER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    features = json.loads((folder / "processor_config.json").read_text())["feature_extractor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(features))
    (folder / "onnx").mkdir()
    for size, name in ((3000, "int8"), (9000, "fp32")):
        for part in ("encoder_model", "decoder_model_merged"):
            (folder / "onnx" / f"{part}{SUFFIX[name]}.onnx").write_bytes(b"0" * size)
    (folder / "model.safetensors").write_bytes(b"weights that no page needs")
    return folder


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in MEMBERS:
        (folder / name).write_text(name)
    return web_packages(folder)  # whole: nothing is fetched


@pytest.fixture
def content(model: Path, packages: Path) -> Site:
    return build_site(model, packages, onnx_precisions(model), "small", offline=True)


def test_the_page_knows_the_model_and_gets_only_what_it_needs(content: Site) -> None:
    index = json.loads(content["page.json"])  # type: ignore[arg-type]
    assert [item["name"] for item in index["precisions"]] == ["int8", "fp32"]
    assert [item["dtype"] for item in index["precisions"]] == ["q8", "fp32"]
    assert index["window"] == 7 * 16_000
    assert index["languages"] == ["en"]
    assert {file.name for file in PAGE.iterdir()} < set(content)
    assert "model/model.safetensors" not in content
    assert "model/onnx/encoder_model_quantized.onnx" in content


def test_every_file_that_the_page_names_is_there(content: Site) -> None:
    for file in PAGE.glob("*.js"):
        for line in file.read_text().splitlines():
            if line.startswith("import "):
                assert line.split("'")[-2].removeprefix("./") in content, f"{file.name}: {line}"
    assert "//" not in (PAGE / "index.html").read_text().replace("<!--", "")  # no address of another host


def test_large_weights_go_along(model: Path, packages: Path) -> None:
    (model / "onnx" / "encoder_model.onnx_data").write_bytes(b"0" * 50_000)
    found = onnx_precisions(model, ["fp32"])
    assert found[0]["mb"] == 0.07
    assert "model/onnx/encoder_model.onnx_data" in build_site(model, packages, found, "small", offline=False)


def test_a_folder_that_is_no_export_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match="in fp16, found fp32, int8"):
        onnx_precisions(model, ["fp16"])
    (model / "onnx" / "encoder_model.onnx").unlink()
    assert [item["name"] for item in onnx_precisions(model)] == ["int8"]
    (model / "onnx" / "decoder_model_merged_quantized.onnx").unlink()
    with pytest.raises(UserError, match="found none"):
        onnx_precisions(model)
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        onnx_precisions(model)


def test_a_static_folder_is_whole_and_never_written_over_anything_else(content: Site, tmp_path: Path) -> None:
    out = tmp_path / "public" / "page"
    for _ in range(2):  # an earlier page is replaced
        size = write_site(content, out)
        assert {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} == set(content)
        assert size == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="name another"):
        write_site(content, other)
    (out / "CNAME").write_text("example.org")
    with pytest.raises(UserError, match="found CNAME"):
        write_site(content, out)
    assert (out / "CNAME").is_file()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.fixture
def connection(content: Site) -> Iterator[http.client.HTTPConnection]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, content)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield http.client.HTTPConnection("127.0.0.1", server.server_port)
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.js?new", "text/javascript"), ("/packages/ort.wasm", "application/wasm"),
     ("/model/onnx/encoder_model.onnx", "application/octet-stream")],
)  # fmt: skip
def test_the_server_says_what_a_file_is_and_isolates_it(
    connection: http.client.HTTPConnection, content: Site, path: str, kind: str
) -> None:
    connection.request("GET", path)
    answer = connection.getresponse()
    source = content[path.partition("?")[0].lstrip("/") or "index.html"]
    assert answer.read() == (source if isinstance(source, bytes) else source.read_bytes())
    assert answer.getheader("Content-Type", "").startswith(kind)
    assert answer.getheader("Cross-Origin-Embedder-Policy") == "require-corp"
    assert "default-src 'self'" in answer.getheader("Content-Security-Policy", "")


@pytest.mark.parametrize("path", ["/model/model.safetensors", "/../serve.py", "/model/../../secret", "/etc/passwd"])
def test_the_server_gives_nothing_else(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("GET", path)
    assert connection.getresponse().status == 404


def test_without_npm_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no npm to fetch it with; install node 20"):
        web_packages(tmp_path / "cache")
