"""What counts as a secret, every way it may be written, and what is no secret and stays as it is."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import stat
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import redaction
from engine.errors import UserError
from engine.plan.recipe import build_recipe
from engine.redaction import HIDDEN, declare, exposed, open_log, redact_file, redacted, secrets
from engine.store.store import Store

KEY = "Zq3-very/secret+key=42ü"
PEM = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\nVJTUt9Us8cKjMzEfYyjiWA4R4\n-----END PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody's secrets but these."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path))
        patch.setattr(redaction, "_values", set[str]())  # what other tests have declared in this process
        yield


def written(key: str) -> list[str]:
    """A key as people and programs write it."""
    data = key.encode()
    return [
        f"key {key}!", f"'{key}'", urllib.parse.quote(key), urllib.parse.quote(key, safe=""), urllib.parse.quote_plus(key),
        re.sub("%..", lambda code: code[0].lower(), urllib.parse.quote(key, safe="")), json.dumps({"error": key}), repr(key), html.escape(f"<b>{key}</b>"),
        json.dumps(key).replace("/", "\\/"), *(base64.b64encode(b"x" * n + b":" + data + b"y" * m).decode() for n in range(3) for m in range(3)),
        base64.urlsafe_b64encode(data).decode(), f"Traceback: ValueError({key!r})",
    ]  # fmt: skip


def holds(text: str, key: str) -> bool:
    """Whether anything of a key's middle can be read in a text, decoded in whichever way."""
    pieces = [
        text,
        urllib.parse.unquote(text),
        urllib.parse.unquote_plus(text),
        html.unescape(text),
        text.replace("\\/", "/"),
    ]
    for part in (text, text.replace("-", "+").replace("_", "/")):
        for start in range(4):
            cut = part[start:]
            for end in range(4):
                try:
                    whole = cut[: len(cut) - (len(cut) - end) % 4 - end] if end else cut[: len(cut) // 4 * 4]
                    pieces.append(base64.b64decode(whole).decode("latin-1"))
                except ValueError:
                    continue
    middle = key[2:-2]
    return any(middle in piece for piece in pieces)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=0x17F, exclude_characters="\x7f"), min_size=12, max_size=40)
)
def test_a_known_secret_is_hidden_however_it_is_written(key: str) -> None:
    key = f"k9{key}"
    os.environ["OPENAI_API_KEY"] = key
    try:
        assert [text for text in written(key) if HIDDEN not in redacted(text) or key in redacted(text)] == []
    finally:
        del os.environ["OPENAI_API_KEY"]


def test_no_piece_of_it_is_left_in_base64() -> None:
    os.environ["SERVICE_TOKEN"] = KEY
    assert any(holds(text, KEY) for text in written(KEY)[10:19])
    assert not any(holds(redacted(text), KEY) for text in written(KEY))


NAMES = ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "ARGILLA_API_KEY", "GITHUB_TOKEN", "GH_PAT", "DB_PASS", "PGPASSWORD", "MYSQL_PWD", "REDISCLI_AUTH", "SSHPASS", "MYAPIKEY", "CI_JOB_JWT", "SLACK_WEBHOOK", "SENTRY_DSN", "GOOGLE_API_KEY", "CLIENT_SECRET", "my_llm_key", "KEY1", "npm_config__auth", "PRIVATE_KEY", "AZURE_STORAGE_SAS", "SESSION_COOKIE"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_variables_named_like_secrets_are(name: str) -> None:
    os.environ[name] = "a1b2c3d4e5f6g7h8"
    assert "a1b2c3d4" not in redacted("it said a1b2c3d4e5f6g7h8, twice: xa1b2c3d4e5f6g7h8x")
    assert exposed("a1b2c3d4e5f6g7h8") == f"the value of ${name}"


def test_variables_that_are_none_hide_nothing(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("x")
    harmless = {
        "PWD": "/home/ann/work", "OLDPWD": "/home/ann", "SSH_AUTH_SOCK": "/tmp/agent.1", "KEY_FILE": "keys/mine.pem", "MAX_TOKENS": "40960000",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.pem"), "TOKENIZERS_PARALLELISM": "parallelism1", "APP_KEY": "quickstart",
        "API_KEY": "", "SHORT_TOKEN": "abc", "EDITOR": "vim-12345678", "CACHE_KEY": "localhost:8000", "KEYBOARD_LAYOUT": "us-intl-12345",
    }  # fmt: skip
    os.environ.update(harmless)
    assert secrets() == []
    text = f"reads {harmless} and the quickstart on localhost:8000"
    assert redacted(text) == text


def test_secrets_inside_of_urls_connection_strings_and_files(tmp_path: Path) -> None:
    os.environ["HTTPS_PROXY"] = "http://bob:p%40ss-w0rd9@proxy.example:3128"
    os.environ["STORAGE"] = (
        "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=Ak/9x+y/z12345==;EndpointSuffix=core"
    )
    os.environ["MY_URL"] = "https://h.example/v1?api_key=Qk-12345678&x=1"
    os.environ["ANYTHING"] = "hf_" + "aB3" * 10
    os.environ["MY_PLACE"] = "odd-place-77"
    declare("MY_PLACE")
    (tmp_path / ".netrc").write_text("machine h.example login ann password net-rc-pw-1\n")
    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/token").write_text("hub-tok-en-77\n")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = id-of-mine-1\naws_secret_access_key = aws/sec+ret1\n"
    )
    wanted = ["p@ss-w0rd9", "p%40ss-w0rd9", "Ak/9x+y/z12345==", "Qk-12345678", "hf_" + "aB3" * 10, "odd-place-77", "net-rc-pw-1",
              "hub-tok-en-77", "id-of-mine-1", "aws/sec+ret1"]  # fmt: skip
    assert redacted(" | ".join(wanted)) == " | ".join([HIDDEN] * len(wanted))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://u:p@host/v1", "http://[hidden]@host/v1"),
        ("https://tok@h/x", "https://[hidden]@h/x"),
        ("s3://KEY:SEC/RET@bucket/x", "s3://[hidden]@bucket/x"),
        ("postgresql://me:pw@db/x?sslmode=on", "postgresql://[hidden]@db/x?sslmode=on"),
        (r"http:\/\/u:p@host", r"http:\/\/[hidden]@host"),
        ("http%3A%2F%2Fu%3Ap%40h", "http%3A%2F%2F[hidden]%40h"),
        ("https://h/x?api_key=abc123&b=2", "https://h/x?api_key=[hidden]&b=2"),
        ("https://b/x?X-Amz-Signature=00ff&X-Amz-Date=2", "https://b/x?X-Amz-Signature=[hidden]&X-Amz-Date=2"),
        ("Authorization: Bearer abcdef12345\nHost: x", "Authorization: [hidden]\nHost: x"),
        ("{'authorization': 'Bearer abc def', 'x': 1}", "{'authorization': '[hidden]', 'x': 1}"),
        ('"api-key": "zzz99"', '"api-key": "[hidden]"'),
        ("x-api-key=abc123", "x-api-key=[hidden]"),
        ('{"password": "correct horse"}', '{"password": "[hidden]"}'),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "aws_secret_access_key = [hidden]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abcDEF-123", "[hidden]"),
        ("AKIAIOSFODNN7EXAMPLE", "[hidden]"),
        (f"read {PEM} whole", "read [hidden] whole"),
        (PEM[:80], "[hidden]"),
        (json.dumps(PEM), '"[hidden]"'),
    ],
)
def test_what_looks_like_a_credential_is_hidden(text: str, left: str) -> None:
    assert redacted(text) == left
    assert redacted(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "mail bob@host at http://h/a@b", "see https://host:8000/path/@name", "git+ssh://git@github.com/x", "ssh://ann@host/x",
        "no key: set $OPENAI_API_KEY, or `url` to a server that needs none.", "pad_token = tokenizer.eos_token", "max_tokens=256",
        "the password is wrong", "password: required", "secret: 12 files", "the key: value pairs", "token_ids=[1, 2]", "tokens: 12,345",
        "Basic instructions are given", "Bearer of good news", "a" * 40, "sha256:" + "0f" * 32, "author: Ann", "signature: def f(x)",
        "key `OPENAI_API_KEY` holds none", "keys: a, b", "task-something-12345678901234567890", "eos_token='<|endoftext|>'",
        "`columns: {key: question}`", "2026-11-30T10:00:00Z", "file:///home/ann/x.jsonl?x=1", "s3://bucket/key=value/part.parquet",
    ],
)  # fmt: skip
def test_ordinary_messages_stay_as_they_are(text: str) -> None:
    assert redacted(text) == text
    assert exposed(text) is None


def test_an_error_of_ours_tells_no_secret() -> None:
    os.environ["MY_TOKEN"] = "tok-en-12345678"
    assert str(UserError("it said tok-en-12345678 to http://a:b@c/")) == "it said [hidden] to http://[hidden]@c/"


@pytest.mark.parametrize("field", ["url: 'http://u:pw@h/v1'", "url: 'http://h/v1?api_key=K1'", "model: env-s3cret-value", "key: hf_abcdefghij0123456789",
                                   "model: 'prefix env-s3cret-value'"])  # fmt: skip
def test_a_recipe_holds_none(field: str) -> None:
    import yaml

    os.environ["ENV_SECRET"] = "env-s3cret-value"
    server = yaml.safe_load(f"{{model: m, {field}}}")
    body = {"kind": "candidates", "from": {"prompts": "./x.jsonl"}, "server": server}
    with pytest.raises(UserError, match=r"r\.yaml:7: stage `a`: `server\.\w+` holds .*kept in manifests") as error:
        build_recipe({"stages": {"a": body}}, {("stages", "a", "server"): 7}, "r.yaml", Path())
    assert not any(word in str(error.value) for word in ("pw@", "K1", "s3cret", "hf_a"))


@pytest.mark.parametrize(
    "given",
    [
        "https://u:pw@h/x.jsonl",
        "s3://KEY:SEC/RET@b/x.jsonl",
        "hub:me/hf_abcdefghij0123456789",
        "https://h/x.jsonl?sig=0a1b",
    ],
)
@pytest.mark.parametrize("place", ["from", "mapping", "paths", "store", "name"])
def test_no_place_of_a_recipe_takes_one(given: str, place: str) -> None:
    body = {"from": {"kind": "filter", "from": given}, "mapping": {"kind": "filter", "from": {"path": given}}}
    read = body.get(place, {"kind": "read", "paths": [given if place == "paths" else "a.txt"]})
    data = {"stages": {"a": read}} | ({place: given} if place in ("store", "name") else {})
    with pytest.raises(UserError, match=r"holds .* kept in manifests"):
        build_recipe(data, {}, "r.yaml", Path())


def test_a_key_that_stands_where_its_variable_belongs_is_refused() -> None:
    body: dict[str, Any] = {
        "kind": "candidates",
        "from": {"prompts": "./x.jsonl"},
        "server": {"model": "m", "key": "abc123def456ghi"},
    }
    with pytest.raises(UserError, match=r"`server\.key` names the environment variable that holds the key") as error:
        build_recipe({"stages": {"a": body}}, {}, "r.yaml", Path())
    assert "abc123" not in str(error.value)
    body["server"] = {"model": "m", "key": "MY_OWN_KEY"}
    assert build_recipe({"stages": {"a": body}}, {}, "r.yaml", Path()).steps["a"].kind == "candidates"


def test_a_store_url_holds_none() -> None:
    with pytest.raises(UserError, match=r"the store's URL holds a password") as error:
        Store("s3://KEY:SECRET@bucket/x")
    assert "SECRET" not in str(error.value)


def test_logs_are_their_owners_alone_and_without_secrets_in_the_end(tmp_path: Path) -> None:
    os.environ["MY_TOKEN"] = "tok-en-12345678"
    log = tmp_path / "stage.log"
    log.write_bytes(b"from before\n")
    log.chmod(0o644)
    with open_log(log) as output:
        output.write(b"\xff said tok-en-12345678\n")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    redact_file(log)
    assert log.read_bytes() == b"from before\n\xff said [hidden]\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600 and list(tmp_path.glob("*.redacted")) == []


PIECES = ["a", "x://a:", "http://", "%3A%2F%2F", "key=", "x-", "a-", "authorization: ", "sk-", "-eyJaaaaaaaa", "password: ", "?sig", "\\/",
          "-----BEGIN PRIVATE KEY-----", "Bearer ", "token ", "://a@", "secret   ", "SG.", "\x1b"]  # fmt: skip


def test_text_that_is_made_to_be_slow_takes_no_more_than_its_share() -> None:
    """What grows with the square of a line's length would take hours of CPU, of which there is a minute; usual are three seconds."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "from engine.redaction import redacted\n"
        f"for piece in {PIECES!r}: redacted('// key ' + piece * (100_000 // len(piece)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], env={})
    assert done.returncode == 0
