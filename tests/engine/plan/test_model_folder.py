"""Models that somebody else made: broken, absurd and hostile folders are told in words, and no code of theirs is run."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.errors import UserError
from engine.plan.inputs import resolve
from engine.plan.model_folder import check_model_folder
from engine.store.store import Store
from generators.backends.vllm.options import check_options
from generators.chat.command import app
from generators.chat.conversation import load
from generators.text.prompts import load_tokenizer
from tests.generators.conftest import build_model

ROOT = Path(__file__).parents[3]
LOADERS = ("from_pretrained", "from_config", "pipeline")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def weights(change: Callable[[dict[str, Any]], object], cut: int = 0) -> Callable[[Path], object]:
    """Rewrites the header of a folder's weights."""

    def rewrite(folder: Path) -> None:
        header, data = header_of(folder)
        change(header)
        text = json.dumps(header).encode()
        whole = struct.pack("<Q", len(text)) + text + data
        (folder / "model.safetensors").write_bytes(whole[: len(whole) - cut])

    return rewrite


def config(**more: Any) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**known, **more}))

    return rewrite


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def first(header: dict[str, Any]) -> dict[str, Any]:
    return header["model.embed_tokens.weight"]


def overlap(header: dict[str, Any]) -> None:
    one, two = sorted((t for n, t in header.items() if n != "__metadata__"), key=lambda t: t["data_offsets"][0])[:2]
    size = two["data_offsets"][1] - two["data_offsets"][0]
    two["data_offsets"] = [one["data_offsets"][0], one["data_offsets"][0] + size]


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (weights(lambda header: None, cut=1000), "no whole safetensors file: its tensors have"),
    "longer": (lambda folder: (folder / "model.safetensors").open("ab").write(b"x" * 8), "its tensors have"),
    "empty weights": (text("model.safetensors", b""), r"its header should have 0 bytes, and the file has 0"),
    "a huge header": (text("model.safetensors", struct.pack("<Q", 2**60) + b"{}"), "header should have 1,152,921,504"),
    "a header that is none": (text("model.safetensors", struct.pack("<Q", 4) + b"\xff\xfe{}"), "its header is no JSON"),
    "a deep header": (text("model.safetensors", struct.pack("<Q", 60_000) + b"[" * 60_000), "its header is no JSON"),
    "a header that is a list": (text("model.safetensors", struct.pack("<Q", 2) + b"[]"), "its header is no object"),
    "overlapping": (weights(overlap), "begins at byte 0, and what is before it ends at"),
    "another type": (weights(lambda h: first(h).update(dtype="F64")), "is F64 of shape"),
    "an unknown type": (weights(lambda h: first(h).update(dtype="X9")), "is X9 of shape"),
    "another shape": (weights(lambda h: first(h).update(shape=[7, 7])), r"is F32 of shape \[7, 7\] in"),
    "a shape below 0": (weights(lambda h: first(h).update(shape=[-1, -64])), "has no type, shape and place"),
    "a huge shape": (weights(lambda h: first(h).update(shape=[2**62, 2**62])), "is F32 of shape"),
    "no place": (weights(lambda h: first(h).pop("data_offsets")), "has no type, shape and place"),
    "a shard that is missing": (text("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}'), "gone"),
    "a shard elsewhere": (text("model.safetensors.index.json", '{"weight_map": {"a": "../../x"}}'), "no file beside it"),
    "an index that is none": (text("model.safetensors.index.json", "[]"), "should hold one object, found list"),
    "pickle": (pickled, r"weights as pickle \(pytorch_model.bin\), which can run any program"),
    "no JSON": (text("config.json", "{"), "config.json is no JSON"),
    "a list": (text("config.json", "[1]"), "should hold one object, found list"),
    "no UTF-8": (text("config.json", b"\xff\xff"), "config.json is no JSON"),
    "deep": (text("config.json", "[" * 100_000), "nested too deeply"),
    "a billion layers": (config(num_hidden_layers=10**9), r"`num_hidden_layers` is 1,000,000,000; no model has more than"),
    "a thousand layers": (config(num_hidden_layers=1000), r"`num_hidden_layers` is 1,000, and the weights are \d+ tensors"),
    "a huge vocabulary": (config(vocab_size=10**12), "`vocab_size` is 1,000,000,000,000"),
    "another vocabulary": (config(vocab_size=10**9), "of another model"),
    "another width": (config(hidden_size=128), "of another model"),
    "a tokenizer's settings": (text("tokenizer_config.json", "7"), "tokenizer_config.json should hold one object"),
    "an adapter's settings": (text("adapter_config.json", "nope"), "adapter_config.json is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_told_in_words_by_plans_and_chat(copy: Path, name: str, tmp_path: Path) -> None:
    breaks, words = BROKEN[name]
    check_model_folder(copy)
    breaks(copy)
    for look in (
        lambda: resolve(str(copy), tmp_path, ("Model",), Store(str(tmp_path / "store"))),
        lambda: load(str(copy), Store(str(tmp_path / "store"))),
    ):
        with pytest.raises(UserError, match=words):
            look()


@pytest.mark.parametrize(
    "content", ["{", "[]", "7", '{"model": {"type": "none"}}', "[" * 100_000, '{"version": "1.0", "model": null}']
)
def test_a_broken_tokenizer_is_told_in_words(copy: Path, content: str) -> None:
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"no tokenizer can be loaded from .*copy: .*Expected a model folder with"):
        load_tokenizer(str(copy))


@pytest.mark.parametrize(
    "more",
    [{"num_attention_heads": 0}, {"hidden_act": "nothing"}, {"model_type": "unheard_of"}, {"intermediate_size": 7},
     {"hidden_size": "wide"}, {"num_attention_heads": -3}, {"rope_parameters": "no"}, {"dtype": "float7"}],
)  # fmt: skip
def test_what_only_the_library_can_tell_comes_in_words_too(copy: Path, more: dict[str, Any], tmp_path: Path) -> None:
    config(**more)(copy)
    with pytest.raises(UserError, match="can be loaded from"):
        load(str(copy), Store(str(tmp_path / "store")))


@pytest.mark.parametrize("known", [False, True])
def test_code_that_comes_with_a_model_is_never_run_and_nobody_is_asked(copy: Path, known: bool, tmp_path: Path) -> None:
    ran = tmp_path / "it ran"
    (copy / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    config(auto_map=auto, **({} if known else {"model_type": "evil", "architectures": ["Evil"]}))(copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "auto_map": auto}))
    done = CliRunner().invoke(app, [str(copy), "--max-tokens", "2"], input="y\ny\nhello\n\n")
    assert not ran.exists() and "[y/N]" not in done.output and "trust_remote_code" not in done.output
    if known:  # what transformers has built in is used
        assert done.exit_code == 0, done.output
    else:
        assert done.exit_code == 2, done.output
        assert "code of its own, which config.json names (`auto_map`: evil.Evil)" in done.output
        assert "No code that comes with a model is run" in done.output
        load_tokenizer(str(copy))  # of a class that transformers has built in
        assert not ran.exists()


def test_every_loader_in_the_repository_says_that_it_runs_no_code_of_a_model() -> None:
    """transformers asks at the terminal where nothing is said."""
    without_code = ("PeftModel", "GenerationConfig", "ScriptDirectory")  # they have no such code to run
    found = 0
    for room in ("engine", "generators", "labeling", "pipelines", "training", "flywheel", "benchmarks", "examples"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                called = node.func if isinstance(node, ast.Call) else None
                if (
                    not isinstance(node, ast.Call)
                    or not isinstance(called, ast.Attribute)
                    or called.attr not in LOADERS
                ):
                    continue
                if ast.unparse(called.value).endswith(without_code):
                    continue
                said = {one.arg: one.value for one in node.keywords}.get("trust_remote_code")
                assert isinstance(said, ast.Constant) and said.value is False, f"{file}:{node.lineno}"
                found += 1
    assert found > 20
    with pytest.raises(UserError, match="no such code is run"):
        check_options({"trust_remote_code": True})
