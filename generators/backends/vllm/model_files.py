"""What a model's files say, without loading it: a folder in the Hugging Face layout, or a hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from engine.errors import UserError
from engine.plan.model_folder import json_object, loading


def end_ids(model: str) -> list[int]:
    """The ids that end a completion: `eos_token_id` of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        value = _json(model, name).get("eos_token_id")
        if value is not None:
            return sorted(value) if isinstance(value, list) else [int(value)]
    return []


def checkpoint_names(model: str) -> set[str]:
    """Names of the tensors in a local folder's safetensors; empty for a model on the hub."""
    names: set[str] = set()
    for file in Path(model).glob("*.safetensors") if Path(model).is_dir() else ():
        with safe_open(file, framework="numpy") as handle:
            names.update(handle.keys())
    return names


def model_config(model: str) -> Any:
    """The configuration of a model folder or hub name.

    Raises:
        UserError: there is none.
    """
    try:
        with loading(model):
            return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except UserError as error:
        if (Path(model) / "config.json").exists():
            raise
        first = str(error).strip().split("\n")[0]
        raise UserError(f"there is no model at {model}: {first} Expected a folder with `config.json`.") from error


def _json(model: str, name: str) -> dict[str, Any]:
    try:
        file = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return {}
    return json_object(Path(file)) if file else {}
