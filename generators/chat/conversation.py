"""A conversation with one model or two, in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.live import Live
from rich.table import Table
from transformers import AutoModelForCausalLM, TextStreamer
from transformers.utils.logging import disable_progress_bar

from engine.plan.inputs import resolve
from engine.plan.model_folder import loading
from engine.store.store import Store
from engine.text.visible import visible
from engine.view.console import PlainConsole
from engine.view.output import put
from generators.backends import adapters
from generators.chat.conversant import Conversant
from generators.chat.served_talker import talker_at
from generators.text.chat_template import ChatTemplate, Unusable
from generators.text.prompts import Message, decode, load_tokenizer


@dataclass
class Talker:
    """A model and its side of the conversation."""

    name: str
    tokenizer: Any
    model: Any
    messages: list[Message] = field(default_factory=lambda: list[Message]())

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)

    def answer(
        self,
        question: str,
        temperature: float,
        max_tokens: int,
        show: Callable[[str], Any] = lambda piece: None,
        shown: str | None = None,
    ) -> str:
        """As `Conversant.answer`."""

        class Pieces(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                show(text)

        self.messages.append({"role": "user", "content": question if shown is None else shown})
        try:
            prompt = self._within_context(max_tokens)
        except Unusable:
            del self.messages[-1]
            raise
        ids = torch.tensor([prompt], device=self.model.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        streamer: Any = Pieces(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, streamer=streamer,
            eos_token_id=self._ends() or None, **sampling,
        )  # fmt: skip
        said = out[0, ids.shape[1] :].tolist()
        text = decode(self.tokenizer, said)
        self.messages[-1] = {"role": "user", "content": question}
        # A thought is shown as it comes, and no part of the conversation that goes on.
        self.messages.append({"role": "assistant", "content": self.template.apart(said, text)[1]})
        return text

    def fits(self, content: str, max_tokens: int) -> bool:
        """As `Conversant.fits`."""
        return len(self.template.prompt([{"role": "user", "content": content}])) <= self._room(max_tokens)

    def _room(self, max_tokens: int) -> int:
        return getattr(self.model.config, "max_position_embeddings", 1 << 20) - max_tokens

    def _ends(self) -> list[int]:
        """What ends an answer: the model's own ids, and the chat template's end of a turn."""
        own = self.model.generation_config.eos_token_id
        return sorted({*(own if isinstance(own, list) else [] if own is None else [own]), *self.template.stop_ids()})

    def _within_context(self, max_tokens: int) -> list[int]:
        """The ids of the conversation. What was said first is forgotten where not all fits before the answer."""
        room = self._room(max_tokens)
        while len(ids := self.template.prompt(self.messages)) > room and len(self.messages) > 1:
            del self.messages[:2]
        return ids


def conversant(name: str, store: Store) -> Conversant:
    """Whoever answers to a name: a model as `load` finds it, or one behind a server (`URL#MODEL`).

    Raises:
        FlywheelError: there is none of this name, or it can't be loaded.
    """
    return talker_at(name) if "://" in name else load(name, store)


def located(name: str, store: Store) -> tuple[str, str | None]:
    """Where the weights of a model are, by artifact name, folder, file of another program (GGUF) or hub name; and its adapter, if it is one.

    Raises:
        FlywheelError: there is none of this name.
    """
    location = name.removeprefix("hub:")
    if Path(name).is_file():
        location = resolve(name, Path(), ("Model",), store).adopt(store).location
    elif not name.startswith("hub:") and not Path(name).is_dir():
        location = store.find(name).location
    if (Path(location) / adapters.CONFIG).exists():
        return adapters.base_of(location, store), location
    return location, None


def load(name: str, store: Store) -> Talker:
    """A model, or an adapter on its base, as `located` finds it.

    Raises:
        FlywheelError: there is none of this name, or it can't be loaded.
    """
    disable_progress_bar()
    base, adapter = located(name, store)
    with loading(base):
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto", trust_remote_code=False)
    if adapter:
        from peft import PeftModel

        with loading(adapter, "adapter"):
            model = PeftModel.from_pretrained(model, adapter)
    return Talker(name, load_tokenizer(adapter or base), model.eval())


def converse(names: list[str], store: str | None, temperature: float, max_tokens: int, seed: int) -> None:
    """Ask who sits at the terminal, and have every model answer, until an empty line, Ctrl-D or Ctrl-C.

    Raises:
        FlywheelError: a model is not there or can't be loaded.
    """
    talkers = [conversant(name, Store(store)) for name in names]
    torch.manual_seed(seed)
    while True:
        try:
            question = input("you  ▸ ").strip()
            if question == "/new":
                for talker in talkers:
                    talker.messages.clear()
            elif not question:
                return
            elif len(talkers) > 1 and sys.stdout.isatty():
                side_by_side(talkers, question, temperature, max_tokens)
            else:
                one_by_one(talkers, question, temperature, max_tokens)
        except Unusable as fault:
            put(f"{fault.detail}. Ask something else, or begin anew with /new.")
        except (EOFError, KeyboardInterrupt):
            put()
            return


def one_by_one(talkers: list[Conversant], question: str, temperature: float, max_tokens: int) -> None:
    width = max(len(talker.name) for talker in talkers)
    for talker in talkers:
        put(f"{talker.name:<{width}} ▸ ", end="", flush=True)
        talker.answer(question, temperature, max_tokens, lambda piece: put(piece, end="", flush=True))
        put()


def side_by_side(talkers: list[Conversant], question: str, temperature: float, max_tokens: int) -> None:
    """Two columns that fill as the answers come."""
    said = [""] * len(talkers)

    def columns() -> Table:
        table = Table(expand=True, show_edge=False)
        for talker in talkers:
            table.add_column(visible(talker.name), ratio=1)
        table.add_row(*(text.strip() for text in said))
        return table

    options: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False, "vertical_overflow": "visible"}
    with Live(columns(), console=PlainConsole(), refresh_per_second=12, **options) as live:
        for place, talker in enumerate(talkers):

            def show(piece: str, place: int = place) -> None:
                said[place] += piece
                live.update(columns())

            talker.answer(question, temperature, max_tokens, show)
