"""`flywheel serve MODEL --docs PATH`: an OpenAI-compatible endpoint that answers from documents, so that any client can be pointed at it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import typer

from engine.command_options import StoreUrl
from engine.errors import FlywheelError
from engine.execution import threads
from engine.view.output import put

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class ServingEngine(StrEnum):
    VLLM = "vllm"
    TRANSFORMERS = "transformers"


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="An artifact, a folder, a GGUF file, hub:NAME; or a server as URL#MODEL, such as a `vllm serve`."
        ),
    ],
    docs: Annotated[
        str, typer.Option("--docs", help="A file, folder or glob; or an artifact with documents, or an index.")
    ],
    embedding: Annotated[str | None, typer.Option(help="Also search by meaning, as `flywheel ask` does.")] = None,
    passages: Annotated[int, typer.Option("--passages", "-k", min=1, help="Passages looked up for a question.")] = 4,
    engine: Annotated[
        ServingEngine,
        typer.Option(
            help="What a model of one's own runs in: a `vllm serve` of its own, or transformers: slow, but runs anywhere."
        ),
    ] = ServingEngine.VLLM,
    host: Annotated[
        str, typer.Option(help="Where to listen. Elsewhere than on this machine only with $FLYWHEEL_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    store: StoreUrl = None,
) -> None:
    """Answer on /v1/chat/completions from documents. Clients send the key in $FLYWHEEL_API_KEY, where it is set."""
    os.environ.update(threads.environment())  # before torch is loaded, which starts threads by it
    from engine.store.store import Store
    from generators.chat.assistant import Assistant
    from generators.chat.conversation import conversant
    from generators.chat.document_index import index_of
    from generators.chat.endpoint import Endpoint

    with ExitStack() as ending:
        try:
            opened = Store(store)
            assistant = Assistant(index_of(docs, opened, embedding, lambda text: put(text, error=True)), None, passages)
            key = os.environ.get("FLYWHEEL_API_KEY")
            endpoint = ending.enter_context(Endpoint(assistant, docs, host, port, key))  # whoever asks already waits
            if engine is ServingEngine.VLLM and "://" not in model:
                from generators.chat.vllm_talker import vllm_talker

                assistant.conversant = ending.enter_context(vllm_talker(model, opened))
            else:
                assistant.conversant = conversant(model, opened)
        except FlywheelError as error:
            put(f"flywheel: {error}", error=True)
            raise typer.Exit(error.exit_code) from None
        put(f"{model} answers from {docs} at {endpoint.url} (Ctrl-C ends it)", flush=True)
        try:
            endpoint.serve_forever()
        except KeyboardInterrupt:
            put()
