"""Exports to a hub: Hugging Face's own client against an HTTP server that answers what the hub's API answers, and keeps what it is sent."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.cli import app
from engine.errors import UserError
from engine.execution.export import export_artifact

TOKEN = "hf_" + "aB3" * 11


@dataclass
class Hub:
    """Repositories (`datasets/ann/notes`) with their files, and what was asked."""

    url: str = ""
    token: str = TOKEN
    visibility: dict[str, str] = field(default_factory=lambda: {})
    files: dict[str, dict[str, bytes]] = field(default_factory=lambda: {})
    asked: list[str] = field(default_factory=lambda: [])

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if path == "/api/repos/create":
            told = json.loads(body)
            owner = told["organization"] or "ann"
            if owner != "ann":
                return 403, {"error": f"You don't have the rights to create a repository under {owner}"}
            name = f"{told['type']}s/{owner}/{told['name']}"
            if name in self.files:
                return 409, {"error": "You already created this", "url": f"{self.url}/{name}"}
            self.visibility[name], self.files[name] = told["visibility"], {}
            return 200, {"url": f"{self.url}/{name.removeprefix('models/')}", "id": f"{owner}/{told['name']}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        found = re.fullmatch(r"/api/((?:datasets|models)/[\w.-]+/[\w.-]+)(/.*)?", path)
        assert found, path
        name, rest = found[1], found[2] or ""
        if name not in self.files:
            return 404, {"error": "Repository not found"}
        if rest.startswith("/preupload/"):
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if rest.startswith("/commit/"):
            for line in map(json.loads, body.splitlines()):
                told = line["value"]
                if line["key"] == "file":
                    assert told["encoding"] == "base64"
                    self.files[name][told["path"]] = base64.b64decode(told["content"])
                elif line["key"] == "deletedFile":
                    del self.files[name][told["path"]]
            return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.url}/{name}/commit/{'0' * 40}"}
        if rest.startswith("/tree/"):
            entries = self.files[name].items()
            return 200, [{"type": "file", "path": p, "size": len(data), "oid": "0" * 40} for p, data in entries]
        siblings = [{"rfilename": path} for path in self.files[name]]
        facts = {"id": name.partition("/")[2], "private": self.visibility[name] != "public", "sha": "0" * 40}
        return 200, {**facts, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()

    class Answers(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {made.token}":
                code, told = 401, {"error": "Invalid username or password."}
            else:
                code, told = made.answer(self.command, self.path.partition("?")[0], body)
            data = json.dumps(told).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if code == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _any

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def preferences(given: Any, count: int) -> Any:
    return given("Preference", [
        {"id": f"{i:032x}", "parents": [], "prompt": said("user", f"{i}?"), "chosen": said("assistant", "yes"),
         "rejected": said("assistant", "no"), "split": "validation" if i % 4 == 0 else "train"}
        for i in range(count)
    ])  # fmt: skip


def test_rows_go_to_a_private_repository_and_load_from_what_it_holds(hub: Hub, given: Any, tmp_path: Path) -> None:
    import datasets

    artifact = preferences(given, 20)
    arguments = ["export", artifact.id, "--to", "hub://ann/taste", "--store", artifact.store.url]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and done.stdout.strip() == f"{hub.url}/datasets/ann/taste"
    assert hub.visibility == {"datasets/ann/taste": "private"}
    export_artifact(artifact, str(tmp_path / "out"))  # the same as into a folder
    held = hub.files["datasets/ann/taste"]
    assert {"README.md", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"} == set(held)
    for path, data in held.items():
        assert data == (tmp_path / "out" / path).read_bytes()
        (tmp_path / "repository" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / path).write_bytes(data)
    loaded = datasets.load_dataset(str(tmp_path / "repository"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(loaded[split]) for split in loaded} == {"train": 15, "validation": 5}
    # Pushed again with other rows: those of before are gone, what somebody put beside them is not.
    held |= {"data/train-00001-of-00002.parquet": b"of before", "notes.txt": b"mine", ".gitattributes": b""}
    assert export_artifact(preferences(given, 8), "hub://ann/taste").endswith("/datasets/ann/taste")
    assert {"data/train-00001-of-00002.parquet"}.isdisjoint(held) and {"notes.txt", ".gitattributes"} <= set(held)
    assert b"8 rows of Preference" in held["README.md"]


def test_nothing_becomes_public_unless_one_says_so(hub: Hub, given: Any) -> None:
    rows = given("Document", [{"id": "a", "parents": [], "text": "a", "source": "s", "offset": 0}])
    export_artifact(rows, "hub://ann/open", public=True)
    assert hub.visibility == {"datasets/ann/open": "public"}
    before = dict(hub.files["datasets/ann/open"])
    with pytest.raises(UserError, match="ann/open is there already, and public: say `--public`"):
        export_artifact(preferences(given, 8), "hub://ann/open")
    assert hub.files["datasets/ann/open"] == before
    export_artifact(rows, "hub://ann/closed")
    with pytest.raises(UserError, match="ann/closed is there already, and private: leave `--public` out"):
        export_artifact(rows, "hub://ann/closed", public=True)
    assert hub.visibility == {"datasets/ann/open": "public", "datasets/ann/closed": "private"}
    with pytest.raises(UserError, match="`--public` goes with a repository of a hub"):
        export_artifact(rows, "elsewhere", public=True)


def test_the_token_is_the_environments_and_what_fails_is_told_in_words(
    hub: Hub, given: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = given("Document", [{"id": "a", "parents": [], "text": "a", "source": "s", "offset": 0}])
    for wrong in ("hub://taste", "hub://ann/a/b", "hub://ann/..", "hub:///x", "hub://ann/a b"):
        with pytest.raises(UserError, match="expected hub://OWNER/NAME"):
            export_artifact(rows, wrong)
    with pytest.raises(UserError, match=r"may not write to team/taste at http.*rights to create"):
        export_artifact(rows, "hub://team/taste")
    # A token in a file, with which the machine is logged in, is not taken.
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.asked)
    with pytest.raises(UserError, match=r"set HF_TOKEN .one in a file is not read"):
        export_artifact(rows, "hub://ann/taste")
    assert len(hub.asked) == asked
    monkeypatch.setenv("HF_TOKEN", "hf_" + "zY9" * 11)
    with pytest.raises(UserError, match="does not take the token in HF_TOKEN") as caught:
        export_artifact(rows, "hub://ann/taste")
    assert "zY9" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"at http://127.0.0.1:9 can't be reached .*`--to FOLDER` writes the same files"
    ):
        export_artifact(rows, "hub://ann/taste")
    assert not hub.files
