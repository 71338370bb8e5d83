"""What can be known of a model's folder without loading it: that its files are what they say, and that none of them is a program.

A model that people bring was written by somebody else. Its weights are read as safetensors, never as pickle, and no code that
comes with it is run. Sizes are compared with the bytes that are there, so that a file of a kilobyte can't ask for a terabyte.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, cast

from engine.errors import FlywheelError, UserError

MOST_JSON = 100_000_000  # bytes of a file of JSON beside the weights
MOST_TOKENIZER = 500_000_000
MOST_HEADER = 100_000_000  # bytes; safetensors' own bound
MOST_LAYERS, MOST_NUMBER = 10_000, 10**10
LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_decoder_layers")
PROGRAMS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64,
    "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
}  # fmt: skip


def check_model_folder(folder: str | Path) -> None:
    """Look at a model or adapter that people bring. What a stage has made, and what is no folder, is left alone.

    Raises:
        UserError: a file of it is not what it should be.
    """
    place = Path(folder)
    from engine.store.artifact import MANIFEST  # with pyarrow

    if not place.is_dir() or (place / MANIFEST).exists():
        return
    config = {}
    for name in ("config.json", "adapter_config.json", "generation_config.json", "tokenizer_config.json"):
        if (place / name).exists():
            read = json_object(place / name)
            config = read if name == "config.json" else config
    tokenizer = place / "tokenizer.json"
    if tokenizer.exists() and tokenizer.stat().st_size > MOST_TOKENIZER:
        raise UserError(
            f"{tokenizer} has {tokenizer.stat().st_size:,} bytes; a tokenizer has at most {MOST_TOKENIZER:,}."
        )
    tensors = dict(_tensors(place))
    if not tensors and (others := sorted(file.name for pattern in PROGRAMS for file in place.glob(pattern))):
        raise UserError(
            f"{place} has its weights as pickle ({', '.join(others[:3])}), which can run any program when it is loaded. Expected "
            "safetensors: most models have them in another revision, or save it once with `save_pretrained` where you trust it."
        )
    _check_sizes(place / "config.json", config, tensors)


def json_object(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        UserError: it does not, or it is larger than any such file.
    """
    try:
        if (size := file.stat().st_size) > MOST_JSON:
            raise UserError(f"{file} has {size:,} bytes; expected at most {MOST_JSON:,}.")
        value: Any = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{file} is nested too deeply to be a model's.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no JSON: {error}. Expected one object; get the file anew.") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} should hold one object, found {type(value).__name__} ({str(value)[:40]!r}).")
    return cast(dict[str, Any], value)


@contextmanager
def loading(location: str, what: str = "model", expected: str = "") -> Generator[None]:
    """Load what people bring: its folder is looked at first, and whatever a library raises is told in words.

    Args:
        what: is loaded.
        expected: a sentence for those whom it surprises.

    Raises:
        UserError: it can't be loaded.
    """
    check_model_folder(location)
    try:
        yield
    except FlywheelError:
        raise
    except Exception as error:  # the files are somebody else's, and libraries fall over them in every way
        raise _unloadable(location, what, expected, error) from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of a library in Rust
            raise _unloadable(location, what, expected, error) from error
        raise


def _unloadable(location: str, what: str, expected: str, error: BaseException) -> UserError:
    place = Path(location)
    for name in ("config.json", "tokenizer_config.json"):
        file = place / name
        named = json_object(file).get("auto_map") if file.is_file() else None
        if named and ("trust_remote_code" in str(error) or "custom code" in str(error)):
            values = cast(dict[str, Any], named).values() if isinstance(named, dict) else [named]
            wanted = ", ".join(sorted({value for value in values if isinstance(value, str)})[:3])
            return UserError(
                f"no {what} can be loaded from {location} without code of its own, which {name} names (`auto_map`: {wanted[:200]}). "
                "No code that comes with a model is run; expected an architecture that transformers has built in."
            )
    first = str(error).strip().split("\n")[0][:500] or "no reason is given"
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return UserError(f"no {what} can be loaded from {location}: {kind}{first} {expected}".rstrip())


def _tensors(folder: Path) -> Iterator[tuple[str, tuple[list[int], int]]]:
    """Name, shape and bytes of every tensor in a folder's safetensors.

    Raises:
        UserError: a file is damaged, or another one is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = json_object(index).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{index} has no `weight_map`. Get the file anew.")
        for name in sorted({str(value) for value in cast(dict[str, Any], shards).values()}):
            if Path(name).name != name or not (folder / name).is_file():
                raise UserError(f"{index} names {name!r}, which is no file beside it. Get the model anew.")
    for file in sorted(folder.glob("*.safetensors")):
        yield from tensors_of(file)


def tensors_of(file: Path) -> Iterator[tuple[str, tuple[list[int], int]]]:
    """Name, shape and bytes of every tensor in a file of safetensors, whose header is checked against the file.

    Raises:
        UserError: it is cut off, its header is none, or its tensors overlap, leave gaps or have other sizes than their shapes.
    """

    def broken(what: str) -> UserError:
        return UserError(f"{file} is no whole safetensors file: {what}. Get the file anew.")

    size = file.stat().st_size
    with file.open("rb") as data:
        start = data.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            raise broken(f"its header should have {length:,} bytes, and the file has {size:,}")
        try:
            header: Any = json.loads(data.read(length).decode())
        except (ValueError, RecursionError) as error:
            raise broken(f"its header is no JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise broken("its header is no object")
    spans = list[tuple[int, int, str]]()
    for name, told in cast(dict[str, Any], header).items():
        if name == "__metadata__":
            continue
        match told:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if all(
                type(n) is int and 0 <= n < 2**63 for n in cast(list[Any], shape)
            ):
                bits = BITS.get(dtype)
                wanted = prod(cast(list[int], shape)) * (bits or 0)
                if bits is None or wanted % 8 or wanted // 8 != end - begin:
                    raise broken(f"`{name[:100]}` is {dtype[:20]} of shape {str(shape)[:60]} in {end - begin:,} bytes")
                spans.append((begin, end, name))
                yield name, (cast(list[int], shape), end - begin)
            case _:
                raise broken(f"`{name[:100]}` has no type, shape and place")
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise broken(f"`{name[:100]}` begins at byte {begin:,}, and what is before it ends at {at:,}")
        at = end
    if at != size - 8 - length:
        raise broken(f"its tensors have {at:,} bytes, and {size - 8 - length:,} are there")


def _check_sizes(file: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[list[int], int]]) -> None:
    """Compare what a configuration asks for with the weights that are there.

    Raises:
        UserError: no such model can have these weights.
    """
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name, value in cast(dict[str, Any], part).items():
            if type(value) is not int or not _counts(name):
                continue
            most = MOST_LAYERS if name in LAYERS else MOST_NUMBER
            if abs(value) > most:
                raise UserError(f"{file}: `{name}` is {value:,}; no model has more than {most:,}.")
            if name in LAYERS and tensors and value > len(tensors):
                raise UserError(
                    f"{file}: `{name}` is {value:,}, and the weights are {len(tensors):,} tensors. They are of another model."
                )
    for name, (shape, _) in tensors.items():
        if not name.endswith(EMBEDDINGS) or len(shape) != 2 or not config:
            continue
        wanted = [config.get("vocab_size", shape[0]), shape[1]]
        if name.endswith("embed_tokens.weight"):
            wanted[1] = config.get("word_embed_proj_dim", config.get("hidden_size", shape[1]))
        packed = "quantization_config" in config or "quantization" in config
        if all(type(n) is int for n in wanted) and wanted != shape and not packed:
            raise UserError(
                f"{file} wants `{name}` of shape {wanted}, and the weights have {shape}. They are of another model."
            )


def _counts(name: str) -> bool:
    return name.startswith(("num_", "n_")) or name.endswith(
        ("_size", "_layers", "_heads", "_dim", "_experts", "_length", "_embeddings")
    )
