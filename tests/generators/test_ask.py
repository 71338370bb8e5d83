"""Questions to one's own documents: in the terminal, over turns, and by an endpoint that any client speaks to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

from engine.errors import UserError
from engine.store.store import Store
from generators.chat import assistant as words
from generators.chat.ask_command import app
from generators.chat.assistant import Assistant
from generators.chat.command import app as chat_app
from generators.chat.document_index import index_of
from generators.chat.endpoint import Endpoint
from tests.generators.conftest import build_model

LEAVE = """# Leave

Everyone has thirty days a year.

## Sick days

Tell Ms Oduya before nine. A note is needed from the third day on.
"""
TRAVEL = "Travel\n======\n\nTrains before planes.\n\nHotels\n------\n\nUp to 140 crowns a night.\n"


@dataclass
class Scripted:
    """Says what a function makes of what it is shown."""

    say: Callable[[str], str]
    name: str = "scripted"
    messages: list[Any] = field(default_factory=lambda: list[Any]())
    seen: list[str] = field(default_factory=lambda: list[str]())
    room: int = 10_000

    def answer(
        self,
        question: str,
        temperature: float,
        max_tokens: int,
        show: Any = lambda piece: None,
        shown: str | None = None,
    ) -> str:
        self.seen.append(shown or question)
        text = self.say(self.seen[-1])
        for piece in text.split(" "):
            show(piece + " ")
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        return text

    def fits(self, content: str, max_tokens: int) -> bool:
        return len(content) <= self.room


@pytest.fixture
def handbook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLYWHEEL_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handbook").mkdir()
    (tmp_path / "handbook" / "leave.md").write_text(LEAVE)
    (tmp_path / "handbook" / "travel.txt").write_text(TRAVEL)
    return tmp_path / "handbook"


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """A tiny model with room for a passage."""
    return build_model(tmp_path / "reader", context=1024)


def told(arguments: list[str], code: int = 0) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done.output


def indexes(folder: Path) -> list[Path]:
    return list((folder.parent / "store" / "artifacts").glob("index-*"))


def test_a_folder_is_indexed_once_and_again_as_far_as_it_changed(handbook: Path) -> None:
    first = told(["What may a hotel cost a night?", "--docs", "handbook"])
    assert "[1] handbook/travel.txt:6 › Travel › Hotels" in first and "140 crowns" in first and "2 rows: texts" in first
    again = told(["Who is told of sick days?", "--docs", "handbook"])
    assert "rows: texts" not in again and "[1] handbook/leave.md:5 › Leave › Sick days" in again
    assert len(indexes(handbook)) == 1
    (handbook / "leave.md").unlink()
    (handbook / "dogs.md").write_text("# Dogs\n\nDogs stay at home.\n")
    assert "dogs.md:1 › Dogs" in told(["May I bring my dog?", "--docs", "handbook"])
    newest = max(indexes(handbook), key=lambda folder: folder.stat().st_mtime_ns)
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["summary"]["new_documents"] == 1 and "index" in manifest["inputs"]
    assert "don't hold it" in told(["Who is told when one is sick?", "--docs", "handbook"])


def test_an_answer_comes_with_what_it_rests_on(handbook: Path) -> None:
    index = index_of("handbook", Store(None), None, lambda text: None)
    conversant = Scripted(
        lambda shown: "A note is needed from day three on [1]. Tell Ms Oduya before nine. Call the moon."
    )
    reply = Assistant(index, conversant).ask("When do I need a note if I am sick?")
    assert "[1] (Leave › Sick days) ## Sick days" in conversant.seen[0] and conversant.seen[0].endswith("if I am sick?")
    (one,) = reply.citations
    assert one.named and one.quote == "A note is needed from the third day on." and one.hit.source == "leave.md"
    assert reply.unsupported == ["Call the moon."] and reply.lacking is None
    assert LEAVE[one.hit.start : one.hit.end] == one.hit.text
    wrong = Assistant(index, Scripted(lambda shown: "Up to 150 crowns a night [1].")).ask(
        "What may a hotel cost a night?"
    )
    assert wrong.lacking == words.UNSUPPORTED  # a number that stands nowhere


def test_it_is_said_in_four_ways_that_the_documents_do_not_hold_it(handbook: Path) -> None:
    index = index_of("handbook", Store(None), None, lambda text: None)
    never = Scripted(lambda shown: pytest.fail("the model was asked"))
    assert Assistant(index, never).ask("Quarks?").lacking == words.NO_WORD
    foreign = Assistant(index, never).ask("Сколько дней отпуска?").lacking
    assert foreign and "written in Cyrillic" in foreign
    declined = Assistant(index, Scripted(lambda shown: "The passages do not say.")).ask("Which leave is unpaid?")
    assert declined.lacking == words.DECLINED
    invented = Assistant(index, Scripted(lambda shown: "Giraffes decide.")).ask("Who decides about leave?")
    assert invented.lacking == words.UNSUPPORTED


def test_a_question_that_says_little_is_looked_up_with_the_one_before(handbook: Path) -> None:
    conversant = Scripted(lambda shown: "Up to 140 crowns a night [1].")
    talk = Assistant(index_of("handbook", Store(None), None, lambda text: None), conversant)
    talk.ask("What may hotels cost a night?")
    assert [hit.heading for hit in talk.ask("And trains?").hits] == ["Travel", "Travel › Hotels"]
    assert [turn["content"] for turn in conversant.messages][::2] == ["What may hotels cost a night?", "And trains?"]


def test_passages_that_a_model_has_no_room_for_are_left_out(handbook: Path) -> None:
    index = index_of("handbook", Store(None), None, lambda text: None)
    conversant = Scripted(lambda shown: "Thirty days [1].", room=260)
    reply = Assistant(index, conversant).ask("How many days of leave a year, and sick days?")
    assert len(reply.hits) == 1 and "[2]" not in conversant.seen[0]


def test_a_model_answers_in_the_terminal_and_as_json(handbook: Path, reader: Path, tiny: Path) -> None:
    shown = told(
        [
            "thirty days of leave a year",
            "--docs",
            "handbook",
            "--model",
            str(reader),
            "--max-tokens",
            "4",
            "--show-passages",
            "-k",
            "1",
        ]
    )
    assert "[1] handbook/leave.md:1" in shown
    asked = ["thirty days", "--docs", "handbook", "--model", str(reader), "--max-tokens", "4", "-k", "1", "--json"]
    answer = json.loads(told(asked))
    assert answer["passages"][0]["place"] == "handbook/leave.md:1" and {"answer", "citations", "lacking"} <= set(answer)
    done = CliRunner().invoke(
        chat_app, [str(reader), "--docs", "handbook", "--max-tokens", "4"], input="thirty days\n/new\nquarks\n\n"
    )
    assert done.exit_code == 0 and "no passage has a word" in done.output, done.output
    assert "has no room for one passage" in told(["thirty days", "--docs", "handbook", "--model", str(tiny)], 2)


def test_a_server_answers(handbook: Path) -> None:
    def answer(messages: list[dict[str, str]], seed: int) -> str:
        return "Up to 140 crowns a night [1]." if "140 crowns" in messages[-1]["content"] else "What?"

    with Endpoint(
        Assistant(index_of("handbook", Store(None), None, print), Scripted(lambda s: answer([{"content": s}], 0))),
        "handbook",
        "127.0.0.1",
        0,
        None,
    ) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        shown = told(["What may hotels cost a night?", "--docs", "handbook", "--model", f"{served.url}#scripted"])
        served.shutdown()
    assert "Up to 140 crowns a night [1]." in shown and "[1] handbook/travel.txt:6" in shown


@pytest.fixture
def served(handbook: Path) -> Iterator[Endpoint]:
    index = index_of("handbook", Store(None), None, lambda text: None)
    conversant = Scripted(lambda shown: "Up to 140 crowns a night [1].")
    with Endpoint(Assistant(index, conversant), "handbook", "127.0.0.1", 0, None) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        yield endpoint
        endpoint.shutdown()


def test_any_client_can_be_pointed_at_it(served: Endpoint) -> None:
    client = openai.OpenAI(base_url=served.url, api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()] == ["scripted"]
    asked: list[Any] = [{"role": "user", "content": "What may a hotel cost?"}]
    whole = client.chat.completions.create(model="scripted", messages=asked)
    text = whole.choices[0].message.content or ""
    assert text.startswith("Up to 140 crowns a night [1].") and "handbook/travel.txt:6" in text
    extra: Any = whole.model_extra
    assert extra["citations"][0]["quote"] == "Up to 140 crowns a night."
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(model="scripted", messages=asked, stream=True)
    ]
    assert len(pieces) > 3 and "".join(pieces).split() == text.split()


@pytest.mark.slow
def test_a_model_is_served_by_vllm_with_documents(handbook: Path, reader: Path) -> None:
    """The command as people start it, with a real `vllm serve` behind it, ended by Ctrl-C with all that it started."""
    program = [sys.executable, "-c", "from flywheel.commandline import main; main()"]
    arguments = ["serve", str(reader), "--docs", "handbook", "--port", "0", "-k", "1"]
    served = subprocess.Popen(
        [*program, *arguments], stdout=subprocess.PIPE, text=True, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    )
    assert served.stdout
    try:
        url = served.stdout.readline().split(" at ")[-1].split()[0]
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        asked: list[Any] = [{"role": "user", "content": "trains"}]
        answer = client.chat.completions.create(model=str(reader), messages=asked, max_tokens=8)
        extra: Any = answer.model_extra
        assert answer.choices[0].message.content and {"citations", "lacking"} <= set(extra)
        assert [one.id for one in client.models.list()] == [str(reader)]
    finally:
        served.send_signal(signal.SIGINT)
        assert served.wait(60) == 0


def test_a_request_that_is_none_is_refused_in_words(served: Endpoint) -> None:
    for body, said in (
        (b"{", "no JSON"),
        (b"[]", "a JSON object"),
        (b"{}", "end with a question"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "should be texts"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}', "`max_tokens` should be a number"),
    ):
        answer = httpx.post(f"{served.url}/chat/completions", content=body)
        assert answer.status_code == 400 and said in answer.json()["error"]["message"]
    assert httpx.post(f"{served.url}/embeddings", content=b"{}").status_code == 404


def test_nobody_else_is_answered(handbook: Path) -> None:
    index = index_of("handbook", Store(None), None, lambda text: None)
    talk = Assistant(index, Scripted(lambda shown: "No."))
    with pytest.raises(UserError, match=r"set \$FLYWHEEL_API_KEY"):
        Endpoint(talk, "handbook", "0.0.0.0", 0, None)
    with Endpoint(talk, "handbook", "127.0.0.1", 0, "sesame") as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        assert httpx.get(f"{endpoint.url}/models").status_code == 401
        assert httpx.get(f"{endpoint.url}/models", headers={"authorization": "Bearer sesame"}).status_code == 200
        endpoint.shutdown()
    with Endpoint(talk, "handbook", "127.0.0.1", 0, None) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        assert httpx.get(f"{endpoint.url}/models", headers={"host": "evil.example"}).status_code == 403
        assert httpx.get(f"{endpoint.url}/models", headers={"origin": "http://evil.example"}).status_code == 403
        endpoint.shutdown()


def test_bad_input_is_told_in_words(handbook: Path) -> None:
    ask = ["What may a hotel cost?", "--docs"]
    (handbook.parent / "empty").mkdir()
    assert "no file matches `empty`" in told([*ask, "empty"], 2)
    assert "there is no file or folder `handbok` here, and no finished artifact" in told([*ask, "handbok"], 2)
    (handbook / "picture.md").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe" * 100)
    with (handbook / "large.txt").open("wb") as file:
        for _ in range(101):
            file.write(b"all work and no play makes a dull line of text\n" * 22_000)
    answer = told([*ask, "handbook"])
    assert (
        "not read: large.txt" in answer
        and "too_long" in answer
        and "not read: picture.md" in answer
        and "140 crowns" in answer
    )
    assert "expected FIELD=PATTERN" in told([*ask, "handbook", "--where", "leave"], 2)
    assert "no embedding model `nowhere`" in told([*ask, "handbook", "--embedding", "nowhere"], 2)
    name = next(folder.name for folder in indexes(handbook))
    assert "is an index of full text alone, and `--embedding static` is another" in told(
        [*ask, name, "--embedding", "static"], 2
    )


def test_a_document_that_goes_while_one_asks_is_told(handbook: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def gone(shown: str) -> str:
        (handbook / "travel.txt").unlink()
        return "Up to 140 crowns a night [1]."

    from generators.chat.showing import put_reply

    index = index_of("handbook", Store(None), None, lambda text: None)
    put_reply(Assistant(index, Scripted(gone)).ask("What may a hotel cost a night?"), "handbook", False)
    shown = capsys.readouterr().out
    assert "(gone since it was indexed)" in shown and "“Up to 140 crowns a night.”" in shown
