"""`flywheel ask --docs PATH QUESTION`: an answer from one's own documents, with what it rests on."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from engine.command_options import Json, StoreUrl
from engine.errors import FlywheelError, UserError
from engine.execution import threads
from engine.view.output import put, put_json

app = typer.Typer(add_completion=False, rich_markup_mode=None)

Docs = Annotated[
    str, typer.Option("--docs", help="A file, folder or glob; or an artifact with documents, or an index.")
]
Embed = Annotated[
    str | None,
    typer.Option(
        "--embedding",
        help="Also search by meaning: `static`, a folder, hub:NAME, or a server as URL#MODEL [full text alone].",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", help="FIELD=PATTERN: only documents of this source, or metadata; repeatable."),
]
Passages = Annotated[int, typer.Option("--passages", "-k", min=1, help="Passages looked up for a question.")]


def conditions(where: list[str] | None) -> dict[str, str]:
    """`FIELD=PATTERN` as a mapping.

    Raises:
        UserError: one has no `=`.
    """
    pairs = [text.partition("=") for text in where or []]
    if bad := next((text for text in where or [] if "=" not in text), None):
        raise UserError(f"`--where {bad}`: expected FIELD=PATTERN, such as `source=handbook/*`.")
    return {name: pattern for name, _, pattern in pairs}


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    docs: Docs,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            envvar="FLYWHEEL_MODEL",
            help="Who answers: an artifact, a folder, a GGUF file, hub:NAME, or a server as URL#MODEL. Without one the passages are shown.",
        ),
    ] = None,
    embedding: Embed = None,
    where: Where = None,
    passages: Passages = 4,
    show_passages: Annotated[
        bool, typer.Option("--show-passages", help="Also print the passages that were looked up.")
    ] = False,
    store: StoreUrl = None,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    json_: Json = False,
) -> None:
    """Answer a question from documents, and tell what the answer rests on. The documents are indexed when they are first asked about."""
    os.environ.update(threads.environment())  # before torch is loaded, which starts threads by it
    from engine.store.store import Store
    from generators.chat.assistant import Assistant
    from generators.chat.document_index import index_of
    from generators.chat.showing import as_json, put_passages, put_reply
    from generators.text.chat_template import Unusable

    try:
        if not question.strip():
            raise UserError("the question is empty.")
        opened = Store(store)
        index = index_of(docs, opened, embedding, lambda text: put(text, error=True))
        conversant = None
        if model:
            from generators.chat.conversation import conversant as conversant_of

            conversant = conversant_of(model, opened)
        assistant = Assistant(index, conversant, passages, where=conditions(where))
        reply = assistant.ask(
            question, temperature, max_tokens, lambda piece: None if json_ else put(piece, end="", flush=True)
        )
        if json_:
            put_json(as_json(reply, docs))
            return
        if reply.text:
            put()
            put()
        if conversant is None and not reply.lacking:
            put("No model was named (--model, or $FLYWHEEL_MODEL): these passages fit best.", error=True)
            put_passages(reply.hits, docs)
            return
        put_reply(reply, docs, show_passages)
    except Unusable as fault:
        put(f"flywheel: {fault.detail}.", error=True)
        raise typer.Exit(2) from None
    except FlywheelError as error:
        put(f"flywheel: {error}", error=True)
        raise typer.Exit(error.exit_code) from None
