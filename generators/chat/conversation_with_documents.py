"""A conversation with a model that looks things up in documents, in the terminal."""

from __future__ import annotations

import torch

from engine.errors import UserError
from engine.store.store import Store
from engine.view.output import put
from generators.chat.assistant import Assistant
from generators.chat.conversation import conversant
from generators.chat.document_index import index_of
from generators.chat.showing import put_reply
from generators.text.chat_template import Unusable


def converse_with_documents(
    model: str,
    documents: str,
    embedding: str | None,
    show_passages: bool,
    store: str | None,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> None:
    """Answer questions from documents until an empty line, Ctrl-D or Ctrl-C. What changes in them meanwhile is indexed before the next one.

    Raises:
        FlywheelError: the model or the documents are not there, or can't be read.
    """
    opened = Store(store)

    def say(text: str) -> None:
        put(text, error=True)

    assistant = Assistant(index_of(documents, opened, embedding, say), conversant(model, opened))
    torch.manual_seed(seed)
    while True:
        try:
            question = input("you  ▸ ").strip()
            if question == "/new":
                assistant.forget()
                continue
            if not question:
                return
            try:
                assistant.index = index_of(documents, opened, embedding, say)
            except UserError as error:  # what is gone can be asked about until it is there again
                put(f"{error} The answer is from the documents as they were.", error=True)
            put(f"{model} ▸ ", end="", flush=True)
            reply = assistant.ask(question, temperature, max_tokens, lambda piece: put(piece, end="", flush=True))
            put()
            put_reply(reply, documents, show_passages)
        except Unusable as fault:
            put(f"{fault.detail}. Ask something else, or begin anew with /new.")
        except (EOFError, KeyboardInterrupt):
            put()
            return
