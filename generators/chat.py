"""`flywheel chat MODEL`: talk to a model in the terminal; two side by side with `--versus`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from engine.errors import FlywheelError
from engine.store import Store

app = typer.Typer(add_completion=False)


@dataclass
class Talker:
    """A model and its side of the conversation."""

    name: str
    tokenizer: Any
    model: Any
    messages: list[dict[str, str]] = field(default_factory=lambda: list[dict[str, str]]())

    def answer(self, question: str, temperature: float, max_tokens: int, stream: bool) -> str:
        """Answer in the light of what was said; printed as it comes where `stream`."""
        import torch
        from transformers import TextStreamer

        from generators.prompting import decode, encode_prompt

        self.messages.append({"role": "user", "content": question})
        ids = torch.tensor([encode_prompt(self.tokenizer, self.messages)], device=self.model.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
        out = self.model.generate(  # pyright: ignore
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, streamer=streamer, **sampling
        )
        text = decode(self.tokenizer, out[0, ids.shape[1] :].tolist())
        self.messages.append({"role": "assistant", "content": text})
        return text


def load(name: str, store: Store) -> Talker:
    """A model by artifact name, folder or hub name."""
    from pathlib import Path

    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from generators.prompting import load_tokenizer

    disable_progress_bar()
    location = name.removeprefix("hub:")
    if not name.startswith("hub:") and not Path(name).is_dir():
        location = store.find(name).location
    model = AutoModelForCausalLM.from_pretrained(location, dtype="auto")
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
    import torch

    try:
        talkers = [load(name, Store(store)) for name in (model, versus) if name]
    except FlywheelError as error:
        print(f"flywheel: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        print(f"flywheel: {model} can't be loaded: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    torch.manual_seed(seed)
    while True:
        try:
            question = input("you  ▸ ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not question:
            return
        if question == "/new":
            for talker in talkers:
                talker.messages.clear()
            continue
        width = max(len(talker.name) for talker in talkers)
        for talker in talkers:
            print(f"{talker.name:<{width}} ▸ ", end="", flush=True)
            talker.answer(question, temperature, max_tokens, stream=True)
