"""Adapters on the hub: uploaded, listed and loaded again, held against a hub that this file serves."""

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import phyla
import phyla.adapters as adapters
from phyla.adapters import Fuse, Stack
from phyla.adapters.hub import chosen
from phyla.errors import AdapterError, CheckpointError, MissingFileError

SHA = "0123456789abcdef0123456789abcdef01234567"
IDS = torch.arange(14).view(2, 7) % 11


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that uploads, searches and downloads use."""

    files: dict[str, dict[str, bytes]]
    refused = False

    def answer(self, body: Any, code: int = 200, **headers: str) -> None:
        """Send JSON, or bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *text: Any) -> None:
        """Say nothing."""

    def read(self) -> bytes:
        """The body of the request."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def missing(self) -> None:
        """Say that there is no such repository."""
        self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def do_POST(self) -> None:
        path, body = urllib.parse.urlsplit(self.path).path, self.read()
        if self.refused:
            self.answer({"error": "not yours"}, 403)
        elif path == "/api/repos/create":
            name = json.loads(body)["name"]
            self.files.setdefault(f"me/{name}", {})
            self.answer({"url": f"http://{self.headers['Host']}/me/{name}", "name": f"me/{name}"})
        elif path.endswith("/preupload/main"):
            found = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for f in json.loads(body)["files"]]  # fmt: skip
            self.answer({"files": found})
        elif "/commit/" in path:
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.files[repository][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            where = f"http://{self.headers['Host']}/{repository}/commit/{SHA}"
            self.answer({"commitUrl": where, "commitOid": SHA, "success": True})
        else:
            self.answer({"errors": [], "warnings": []})

    def info(self, repository: str) -> dict[str, Any]:
        """What the hub tells of a repository."""
        card = self.files[repository].get("README.md", b"").decode()
        config = json.loads(self.files[repository].get("adapter_config.json", b"{}"))
        told = {"model_name": config.get("model_name"), "model_type": config.get("model_type")}
        return {
            "id": repository, "modelId": repository, "author": "me", "sha": SHA,
            "tags": re.findall(r"^- (\S+)$", card, re.M), "config": {"adapter_transformers": told},
            "siblings": [{"rfilename": name} for name in self.files[repository]],
        }  # fmt: skip

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(parts.query)
        path = urllib.parse.unquote(parts.path)
        if path == "/api/models":
            found = [self.info(repository) for repository in self.files]
            self.answer([i for i in found if set(query.get("filter", [])) <= set(i["tags"])])
            return
        if path.startswith("/api/models/"):
            repository, _, rest = path.removeprefix("/api/models/").partition("/revision/")
            repository, _, tree = repository.partition("/tree/")
            if repository not in self.files or rest not in ("", "main", SHA):
                self.missing()
            elif tree:
                found = self.files[repository].items()
                self.answer(
                    [{"type": "file", "path": n, "size": len(d), "oid": _digest(d)} for n, d in found]
                )
            else:
                self.answer(self.info(repository))
            return
        repository, _, rest = path.strip("/").partition("/resolve/")
        data = self.files.get(repository, {}).get(rest.partition("/")[2])
        if data is None:
            self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        else:
            self.answer(data, ETag=f'"{_digest(data)}"', X_Repo_Commit=SHA)


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    """A hub of this machine that the hub's library talks to."""
    handler: type[Hub] = type("Here", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    where = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", where)
    template = where + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    close = getattr(huggingface_hub, "close_session", lambda: None)
    close()
    yield handler
    close()
    server.shutdown()
    thread.join()
    server.server_close()


def model(name: str = "BertForSequenceClassification", **changes: Any) -> Any:
    """A tiny model with random weights."""
    torch.manual_seed(0)
    cls = getattr(phyla, name, None) or getattr(adapters, name)
    made = cls(phyla.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        **changes,
    ))  # fmt: skip
    made.config._name_or_path = "acme/tiny"
    return made.eval()


def shaken(made: Any, *names: str) -> None:
    """Adapters moved off their start."""
    with torch.no_grad():
        for name in names:
            for parameter in made.adapters.get(name).parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)


def run(made: Any) -> torch.Tensor:
    with torch.no_grad():
        return made(IDS)[0]


def test_an_adapter_is_pushed_found_and_loaded(hub: type[Hub]) -> None:
    mine = model()
    mine.add_adapter("a", config="lora[r=2]", set_active=True)
    shaken(mine, "a")
    address = mine.push_adapter_to_hub(
        "mine", "a", datasets_tag="imdb", adapter_card_kwargs={"language": "en", "license": "mit"}
    )
    assert address.endswith(f"/me/mine/commit/{SHA}")
    assert {"README.md", "adapter_config.json", "adapter.safetensors"} <= set(hub.files["me/mine"])
    card = hub.files["me/mine"]["README.md"].decode()
    assert "- adapter-transformers" in card and "- imdb" in card and 'load_adapter("me/mine"' in card
    assert 'license: "mit"' in card and "- en" in card
    hub.files["me/other"] = {"README.md": b"---\ntags:\n- other\n---"}
    found = adapters.AdapterInfo("hf", "me/mine", "acme/tiny", "me", SHA)
    assert adapters.list_adapters() == [found] == adapters.list_adapters("acme/tiny")
    assert adapters.list_adapters("acme/large") == []
    assert adapters.get_adapter_info("me/mine") == found
    other = model()
    other.load_state_dict({k: v for k, v in mine.state_dict().items() if not k.startswith("adapters.")})
    assert other.load_adapter("me/mine", load_as="b", set_active=True) == "b"
    assert torch.equal(run(other), run(mine))
    with pytest.raises(MissingFileError, match="me/mine"):
        other.load_adapter("me/mine", version="gone")


def test_a_setup_is_pushed_and_loaded(hub: type[Hub]) -> None:
    mine = model("BertAdapterModel")
    for name in ("a", "b", "c"):
        mine.add_adapter(name, config="seq_bn[reduction_factor=4]")
    mine.add_adapter_fusion(["a", "b"])
    mine.add_classification_head("h", num_labels=3)
    shaken(mine, "a", "b", "c")
    mine.set_active_adapters(Stack("c", Fuse("a", "b")))
    mine.active_head = "h"
    mine.push_adapter_setup_to_hub("all", Stack("c", Fuse("a", "b")), head_setup="h")
    stored = set(hub.files["me/all"])
    assert {"adapter_setup.json", "a/adapter.safetensors", "h/model_head.safetensors"} <= stored
    assert 'load_adapter_setup("me/all"' in hub.files["me/all"]["README.md"].decode()
    other = model("BertAdapterModel")
    base = {k: v for k, v in mine.state_dict().items() if k.startswith("backbone.")}
    other.load_state_dict({**other.state_dict(), **base})
    other.load_adapter_setup("me/all", set_active=True)
    assert other.active_adapters == mine.active_adapters and other.active_head == "h"
    assert torch.equal(run(other), run(mine))


def test_repositories_of_bin_files(hub: type[Hub], tmp_path: Path) -> None:
    mine = model()
    mine.add_adapter("a", config="seq_bn[reduction_factor=4]", set_active=True)
    shaken(mine, "a")
    mine.save_adapter(tmp_path, "a", use_safetensors=False)
    hub.files["me/bin"] = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    hub.files["me/bin"] |= {"training.bin": b"no", "logs/events.bin": b"no"}
    other = model()
    other.load_adapter("me/bin", set_active=True)
    assert other.adapters.get("a").state_dict().keys() == mine.adapters.get("a").state_dict().keys()


def test_which_files_are_downloaded() -> None:
    names = [
        "README.md", "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin", "model.safetensors",
        "b/pytorch_adapter.bin", "b/adapter_config.json", "b/pytorch_model_head.bin", "optimizer.bin",
        "c/adapter_model.bin", "c/adapter_model.safetensors",
    ]  # fmt: skip
    assert chosen(names) == [
        "adapter_config.json", "adapter.safetensors", "b/pytorch_adapter.bin", "b/adapter_config.json",
        "b/pytorch_model_head.bin", "c/adapter_model.safetensors",
    ]  # fmt: skip


def test_what_the_hub_refuses(hub: type[Hub]) -> None:
    mine = model()
    mine.add_adapter("a", config="lora[r=2]")
    with pytest.raises(MissingFileError, match="asking for 'me/gone'"):
        adapters.get_adapter_info("me/gone")
    with pytest.raises(MissingFileError, match="me/gone"):
        mine.load_adapter("me/gone")
    hub.refused = True
    with pytest.raises(CheckpointError, match="uploading to 'mine' failed"):
        mine.push_adapter_to_hub("mine", "a")
    assert hub.files == {}


@pytest.mark.parametrize("way", ["offline", "unreachable"])
def test_without_the_hub(way: str, monkeypatch: pytest.MonkeyPatch, hub: type[Hub]) -> None:
    mine = model()
    mine.add_adapter("a", config="lora[r=2]")
    if way == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    why = "may not be asked" if way == "offline" else "cannot be reached"
    for call in (
        adapters.list_adapters,
        lambda: adapters.get_adapter_info("me/mine"),
        lambda: mine.push_adapter_to_hub("mine", "a"),
        lambda: mine.push_adapter_setup_to_hub("mine", "a"),
        lambda: mine.load_adapter("me/mine"),
        lambda: mine.load_adapter_setup("me/mine"),
        lambda: mine.load_adapter_fusion("me/mine"),
    ):
        with pytest.raises(CheckpointError, match=why):
            call()
    with pytest.raises(AdapterError, match="no adapter 'b'"):  # before the hub is asked
        mine.push_adapter_to_hub("mine", "b")
