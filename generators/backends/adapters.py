"""Adapters as models: sampled from unmerged, on the base that they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import UserError
from engine.plan.model_folder import json_object

if TYPE_CHECKING:
    from engine.store.artifact import Artifact
    from engine.store.store import Store

CONFIG = "adapter_config.json"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the sizes vLLM lays adapters out in


def located(model: Artifact, store: Store) -> tuple[str, dict[str, Any]]:
    """Where the weights of a model are, here, and what an engine is told besides where it is an adapter, which is served unmerged.

    Raises:
        UserError: an adapter's base is not in the store.
    """
    location = model.location
    return (base_of(location, store), {"adapter": location}) if model.kind == "Adapter" else (location, {})


def base_of(location: str, store: Store) -> str:
    """Where the model is that this adapter was trained on.

    Raises:
        UserError: it is not in the store.
    """
    name = read(location).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"the adapter {location} does not say what it was trained on (`base_model_name_or_path`).")
    artifact = store.get(name)
    if artifact is not None:
        return artifact.location
    if Path(name).is_dir() or name.count("/") == 1:
        return name
    raise UserError(f"the adapter {location} was trained on {name}, which is not in the store {store.url}.")


def read(location: str) -> dict[str, Any]:
    return json_object(Path(location) / CONFIG)


def room_for(location: str) -> int:
    """The rank that vLLM has to lay out for an adapter.

    Raises:
        UserError: vLLM can't serve it unmerged.
    """
    config = read(location)
    rank = max([config["r"], *config.get("rank_pattern", {}).values()])
    if config.get("use_dora"):
        raise UserError(f"vLLM does not serve DoRA unmerged ({location}); train with `merge: true`.")
    for room in RANKS:
        if rank <= room:
            return room
    raise UserError(f"vLLM serves adapters up to rank {RANKS[-1]}; {location} has rank {rank}. Merge it.")
