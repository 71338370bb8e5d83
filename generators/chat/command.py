"""`flywheel chat MODEL`: talk to a model in the terminal; two side by side with `--versus`, with one's own documents with `--docs`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from engine.errors import FlywheelError, UserError
from engine.execution import threads
from engine.view.output import put

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def chat(
    model: Annotated[
        str,
        typer.Argument(help="An artifact (quickstart/ppo), a folder, a GGUF file, hub:NAME, or a server as URL#MODEL."),
    ],
    versus: Annotated[str | None, typer.Option(help="A second model that gets the same questions.")] = None,
    docs: Annotated[
        str | None, typer.Option(help="A file, folder or glob to answer from, with citations; or an artifact.")
    ] = None,
    embedding: Annotated[
        str | None, typer.Option(help="With --docs: also search by meaning, as `flywheel ask` does.")
    ] = None,
    show_passages: Annotated[
        bool, typer.Option("--show-passages", help="With --docs: print the passages that were looked up.")
    ] = False,
    store: Annotated[str | None, typer.Option(help="Folder or URL of artifacts [.flywheel].")] = None,
    temperature: Annotated[float, typer.Option(min=0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Talk to a model. An empty line, Ctrl-D or Ctrl-C ends it; `/new` forgets what was said."""
    os.environ.update(threads.environment())  # before torch is loaded, which starts threads by it
    from generators.chat.conversation import converse  # and which the help has no need of

    try:
        if docs is None:
            if embedding or show_passages:
                raise UserError("--embedding and --show-passages are for --docs: name the documents.")
            converse([model, *([versus] if versus else [])], store, temperature, max_tokens, seed)
            return
        if versus:
            raise UserError("--docs is for one model: leave --versus out.")
        from generators.chat.conversation_with_documents import converse_with_documents

        converse_with_documents(model, docs, embedding, show_passages, store, temperature, max_tokens, seed)
    except FlywheelError as error:
        put(f"flywheel: {error}", error=True)
        raise typer.Exit(error.exit_code) from None
