"""What a plan finds out about a server: real ones on the loopback interface, and places where there is none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.stage.preflight import Glimpse, Preflight
from engine.stage.stage import Stage
from generators.backends.server.reachable import has, shown
from generators.backends.server.server_check import check_servers
from generators.backends.server.settings import ServerSettings
from generators.candidates.dialogue_stage import Dialogue
from generators.candidates.stage import Candidates
from generators.corpus.stage import Corpus
from generators.grounded.stage import Grounded
from generators.instructions.stage import Instructions
from generators.judge.stage import Judge
from tests.generators.faulty_server import FaultyServer


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer(models=("qwen3-8b", "llama3:latest")) as server:
        yield server


@pytest.fixture
def nowhere() -> str:
    """The address of a server that has gone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generators.backends.server.reachable.PATIENCE", 30.0)  # the machine may be busy


def check(known: Preflight | None = None, **settings: Any) -> None:
    check_servers(known or Preflight(), ServerSettings.model_validate({"model": "qwen3-8b", **settings}))


def test_a_server_that_is_there_has_the_model_or_names_the_nearest(server: FaultyServer) -> None:
    check(url=server.url)
    check(url=server.url + "/", model="llama3")
    with pytest.raises(UserError, match=r"has no model `qwen3-8B`\. Did you mean `qwen3-8b`\? It has qwen3-8b, llama3"):
        check(url=server.url, model="qwen3-8B")
    with pytest.raises(UserError, match=r"write `url: http://127\.0\.0\.1:\d+/v1`"):
        check(url=server.url.removesuffix("/v1"))
    assert not server.served  # nothing was asked of a model


def test_nobody_there(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=rf"nothing answers at {nowhere}: connection refused\. Start it, .*`--offline`"):
        check(url=nowhere)
    monkeypatch.setenv("OPENAI_BASE_URL", nowhere)
    with pytest.raises(UserError, match="connection refused"):
        check()
    check(Preflight(offline=True))
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match=r"no key: set \$MY_KEY"):
        check(key="MY_KEY")
    with pytest.raises(UserError, match=r"`url` is no URL: .* Expected e\.g\. http"):
        check(url="http://[::1/v1")
    for odd in ("127.0.0.1:8000/v1", "ftp://127.0.0.1/v1", "http://127.0.0.1:99999/v1", "http://"):
        with pytest.raises(UserError, match="nothing answers at"):
            check(url=odd)


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generators.backends.server.reachable.PATIENCE", 0.05)
    slow = pytest.raises(UserError, match=r"does not answer within 0\.05 s")
    with socket.create_server(("127.0.0.1", 0)) as silent, slow:
        check(url=f"http://127.0.0.1:{silent.getsockname()[1]}/v1")


def test_keys_are_asked_for_by_the_name_of_their_variable_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyServer(models=("qwen3-8b",), key="right") as server:
        monkeypatch.delenv("MY_KEY", raising=False)
        with pytest.raises(UserError, match=r"wants a key \(401\): set \$MY_KEY"):
            check(url=server.url, key="MY_KEY")
        monkeypatch.setenv("MY_KEY", "wrong")
        with pytest.raises(UserError, match=r"refuses the key in \$MY_KEY \(401\)") as told:
            check(url=server.url, key="MY_KEY")
        assert "wrong" not in str(told.value)
        monkeypatch.setenv("MY_KEY", "right")
        check(url=server.url, key="MY_KEY")
    assert shown("http://ann:secret@host:1/v1?api_key=secret") == "http://host:1/v1"


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_lists_no_models_is_told_and_not_refused(server: FaultyServer, status: int) -> None:
    server.status, lines = status, list[str]()
    check(Preflight(say=lines.append), url=server.url)
    assert len(lines) == 1 and f"answers {status}" in lines[0]


def test_names_that_servers_take_beside_those_they_list() -> None:
    assert has(["llama3:latest"], "llama3") and has(["a/b"], "a/b:cheapest")
    assert not has(["llama3:8b"], "llama3") and not has([], "m")


@pytest.mark.parametrize(
    "stage",
    [
        lambda s: Candidates.model_validate({"server": s, "n": 1}),
        lambda s: Candidates.model_validate({"server": [s] if s else [], "n": 1}),
        lambda s: Dialogue.model_validate({"server": s}),
        lambda s: Grounded.model_validate({"server": s}),
        lambda s: Instructions.model_validate({"method": {"name": "multi_turn"}, "count": 1, "server": s}),
        lambda s: Corpus.model_validate({"documents": 1, "styles": ["wiki"], "server": s}),
        lambda s: Judge.model_validate({"pairwise": True, "server": s}),
    ],
)
def test_every_stage_with_a_server_looks_whether_it_is_there(stage: Any, nowhere: str, tmp_path: Path) -> None:
    made: Stage = stage({"model": "m", "url": nowhere})
    inputs = {name: [Glimpse("x", "Prompt")] for name in made.takes if name not in ("model", "index")}
    with pytest.raises(UserError, match="nothing answers at"):
        made.check(Preflight(inputs))
    made.check(Preflight(inputs, offline=True))
    assert made.asks()
    with pytest.raises(UserError, match=r"(who answers\?.*found both|is too small for 2 who answer)"):
        made.check(Preflight({**inputs, "model": [Glimpse("m", "Model")]}, offline=True))
    with pytest.raises(UserError, match=r"who answers\?.*found neither"):
        alone: Stage = stage(None)
        alone.check(Preflight(inputs))


def test_what_a_method_works_from_is_known_before_the_run() -> None:
    def check_of(config: dict[str, Any], *ports: str) -> None:
        inputs = {port: [Glimpse(port, "Document")] for port in ports}
        Instructions.model_validate(config).check(Preflight(inputs, offline=True))

    server = {"model": "m", "url": "http://127.0.0.1:1/v1"}
    check_of({"method": {"name": "evol_instruct"}, "server": server}, "records")
    with pytest.raises(UserError, match="makes instructions from `records`"):
        check_of({"method": {"name": "backtranslation"}, "server": server}, "seeds")
    with pytest.raises(UserError, match="needs the model itself"):
        check_of({"method": {"name": "magpie"}, "count": 1, "server": server})
    with pytest.raises(UserError, match="templates need records"):
        check_of({"questions": ["{{ a }}"]}, "seeds")
    check_of({"questions": ["{{ a }}"]}, "records")
