"""Every field of every stage kind either is part of the identity or stands in a list here, with the reason.

A field that changes the bytes and is not in the key gives a wrong artifact from the cache, silently: the worst fault a
store can have. So whoever marks a field `NotIdentity` has to come by this list.
"""

from __future__ import annotations

from typing import Any

import pytest

from engine.stage.stage import NotIdentity, Stage, kinds, load
from generators.instructions.stage import SYNTHESIS

# What says how the work is done, how it is watched or cut short; and places, whose contents are in `sources()`.
NOT_IDENTITY = {
    "sandbox",  # where programs run that the kernel can not hold back whole
    "max_failed", "patience", "checkpoint_every", "validation_every", "log_every", "keep", "processes", "sharding", "prompts", "gpu_share", "recompute",
    "replicas", "memory_gb", "report_to",
    "tool",  # where people rank: the rows are the same (tests/labeling/label_studio)
    "max_touched", "contamination",  # may fail a run, or add a stage to it
    "license",  # said on cards alone
    "paths", "exclude", "tokenizer", "file", "model", "embedding",
}  # fmt: skip
OWN = {"server", "user_server"}  # parts with an identity of their own: which model answers, not where or how fast
# Fields that count only where another one asks for them, and what asks.
ASKED: dict[str, dict[str, Any]] = {
    "judge": {"pairwise": True}, "select": {"beta": 1.0}, "read": {"rows": "Prompt"},
}  # fmt: skip
UNUSED = {"corpus": {"audiences", "personas"}, "instructions": set(SYNTHESIS)}
INSTALLED = [kind for kind in kinds() if not kind.startswith("toy_")]


def stage_of(kind: str) -> Stage:
    stage = load(kind)
    values = {
        name: "given" if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in stage.model_fields.items()
    }
    return stage.model_construct(**{**values, **ASKED.get(kind, {})})


@pytest.mark.parametrize("kind", INSTALLED)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_each_field_is_in_the_key_or_in_the_list(kind: str) -> None:
    stage = stage_of(kind)
    for name, field in type(stage).model_fields.items():
        if name in OWN | UNUSED.get(kind, set[str]()):
            continue
        before: Any = getattr(stage, name)
        after = ["mutated"] if isinstance(before, list | tuple) else {"mutated": 1} if not before else None
        changed = stage.model_copy(update={name: after})
        marked = NotIdentity in field.metadata
        assert not marked or name in NOT_IDENTITY, f"`{kind}.{name}` left the key: does it change no byte, ever?"
        counts = not marked and (name != "seed" or type(stage).random)
        assert (changed.identity() != stage.identity()) == counts, f"{kind}.{name}"
