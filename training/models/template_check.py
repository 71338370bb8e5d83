"""What can be known of a model's chat template before a run: whether there is a usable one, and what the model will see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engine.store.artifact import MANIFEST
from generators.text.chat_template import ChatTemplate, Unusable
from generators.text.prompts import load_tokenizer
from training.models.shown import shown

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight

Template = TypeVar("Template", bound=ChatTemplate)
LOOKED_AT = 20  # rows
Encode = Callable[[Mapping[str, Any]], tuple[Sequence[int], Sequence[bool]]]


def template_of(known: Preflight, port: str, read: Callable[[Any], Template]) -> Template | None:
    """The chat template of a model that people bring, as `read` gives it for a tokenizer.

    None where there is no folder yet, or where a stage has made the model: loading a tokenizer costs seconds, and that
    stage has looked at it.

    Raises:
        UserError: there is no tokenizer, or its template can't be used.
    """
    given = known.first(port)
    if given is None or given.model is None or not Path(given.model).is_dir():
        return None
    return None if (Path(given.model) / MANIFEST).exists() else read(load_tokenizer(given.model))


def say_example(known: Preflight, port: str, template: ChatTemplate, encode: Encode) -> None:
    """Say of each input of a port how the model will see its first row, and how many of the first can't be shown to it.

    Args:
        encode: token ids of a row, and which of them are learnt.
    """
    for given in known.inputs.get(port, []):
        rows = given.rows.slice(0, LOOKED_AT).to_pylist() if given.rows is not None else []
        line, faults = "", list[Unusable]()
        for row in rows:
            try:
                ids, learnt = encode(row)
            except Unusable as fault:
                faults.append(fault)
                continue
            line = line or shown(template.tokenizer, ids, learnt)
        if line:
            known.say(f"{given.name}: {line}")
        if faults:
            known.say(
                f"{given.name}: {len(faults)} of the first {len(rows)} rows can't be shown to the model, and will be set "
                f"aside: {faults[0].detail}"
            )
