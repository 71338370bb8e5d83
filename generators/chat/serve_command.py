"""`flywheel serve MODEL --docs PATH`: an OpenAI-compatible endpoint that answers from documents, so that any client can be pointed at it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from engine.command_options import StoreUrl
from engine.errors import FlywheelError
from engine.execution import threads
from engine.view.output import put

app = typer.Typer(add_completion=False, rich_markup_mode=None)


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

    try:
        opened = Store(store)
        index = index_of(docs, opened, embedding, lambda text: put(text, error=True))
        endpoint = Endpoint(
            Assistant(index, conversant(model, opened), passages), docs, host, port, os.environ.get("FLYWHEEL_API_KEY")
        )
    except FlywheelError as error:
        put(f"flywheel: {error}", error=True)
        raise typer.Exit(error.exit_code) from None
    put(f"{model} answers from {docs} at {endpoint.url} (Ctrl-C ends it)", flush=True)
    try:
        endpoint.serve_forever()
    except KeyboardInterrupt:
        put()
    finally:
        endpoint.server_close()
