"""`flywheel chat MODEL`: talk to a model in the terminal; two side by side with `--versus`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, TextStreamer
from transformers.utils.logging import disable_progress_bar

from engine.errors import FlywheelError
from engine.store.store import Store
from generators.backends import adapters
from generators.text.prompts import decode, encode_prompt, load_tokenizer

app = typer.Typer(add_completion=False)


@dataclass
class Talker:
    """A model and its side of the conversation."""

    name: str
    tokenizer: Any
    model: Any
    messages: list[dict[str, str]] = field(default_factory=lambda: list[dict[str, str]]())

    def answer(
        self, question: str, temperature: float, max_tokens: int, show: Callable[[str], Any] = lambda piece: None
    ) -> str:
        """Answer in the light of what was said.

        Args:
            show: gets the answer piece by piece, as it comes.
        """

        class Pieces(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                show(text)

        self.messages.append({"role": "user", "content": question})
        ids = torch.tensor([self._within_context(encode_prompt, max_tokens)], device=self.model.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        streamer: Any = Pieces(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, streamer=streamer, **sampling
        )
        text = decode(self.tokenizer, out[0, ids.shape[1] :].tolist())
        self.messages.append({"role": "assistant", "content": text})
        return text

    def _within_context(self, encode: Callable[..., list[int]], max_tokens: int) -> list[int]:
        """The ids of the conversation. What was said first is forgotten where not all fits before the answer."""
        room = getattr(self.model.config, "max_position_embeddings", 1 << 20) - max_tokens
        while len(ids := encode(self.tokenizer, self.messages)) > room and len(self.messages) > 1:
            del self.messages[:2]
        return ids


def load(name: str, store: Store) -> Talker:
    """A model, or an adapter on its base, by artifact name, folder or hub name.

    Raises:
        FlywheelError: there is none of this name. OSError, ValueError: it can't be loaded.
    """
    disable_progress_bar()
    location = name.removeprefix("hub:")
    if not name.startswith("hub:") and not Path(name).is_dir():
        location = store.find(name).location
    adapter = (Path(location) / adapters.CONFIG).exists()
    model: Any = AutoModelForCausalLM.from_pretrained(
        adapters.base_of(location, store) if adapter else location, dtype="auto"
    )
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, location)
    return Talker(name, load_tokenizer(location), model.eval())


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="An artifact (quickstart/ppo), a folder, or hub:NAME.")],
    versus: Annotated[str | None, typer.Option(help="A second model that gets the same questions.")] = None,
    store: Annotated[str | None, typer.Option(help="Folder or URL of artifacts [.flywheel].")] = None,
    temperature: Annotated[float, typer.Option(min=0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Talk to a model. An empty line, Ctrl-D or Ctrl-C ends it; `/new` forgets what was said."""
    talkers: list[Talker] = []
    for name in (model, versus):
        try:
            talkers += [load(name, Store(store))] if name else []
        except FlywheelError as error:
            print(f"flywheel: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except (OSError, ValueError) as error:
            print(f"flywheel: {name} can't be loaded: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
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
        except (EOFError, KeyboardInterrupt):
            print()
            return


def one_by_one(talkers: list[Talker], question: str, temperature: float, max_tokens: int) -> None:
    width = max(len(talker.name) for talker in talkers)
    for talker in talkers:
        print(f"{talker.name:<{width}} ▸ ", end="", flush=True)
        talker.answer(question, temperature, max_tokens, lambda piece: print(piece, end="", flush=True))
        print()


def side_by_side(talkers: list[Talker], question: str, temperature: float, max_tokens: int) -> None:
    """Two columns that fill as the answers come."""
    said = [""] * len(talkers)

    def columns() -> Table:
        table = Table(expand=True, show_edge=False)
        for talker in talkers:
            table.add_column(talker.name, ratio=1)
        table.add_row(*(Text(text.strip()) for text in said))
        return table

    with Live(columns(), refresh_per_second=12, vertical_overflow="visible") as live:
        for place, talker in enumerate(talkers):

            def show(piece: str, place: int = place) -> None:
                said[place] += piece
                live.update(columns())

            talker.answer(question, temperature, max_tokens, show)
