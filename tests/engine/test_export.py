"""What is exported: a model and nothing beside it, rows by split, under the names that people know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from transformers import LlamaConfig
from typer.testing import CliRunner

from engine.cli import app
from engine.errors import UserError
from engine.execution.export import export_artifact
from engine.execution.worker import carry_out
from engine.plan.inputs import resolve
from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.training.models.test_gguf import SHAPE, save
from training.models.gguf.from_gguf import read


class Learnt(Stage):
    """Leaves beside the model what trainers do: rows it refused, rows it sampled, numbers."""

    takes = {"model": port("Model", optional=True)}
    gives = "Model"
    tag: int = 0

    def run(self, job: Job) -> None:
        save(job.output, LlamaConfig(**SHAPE))
        (job.output / "rollouts").mkdir()
        (job.output / "rollouts" / "00000.parquet").write_bytes(b"rows")
        job.reject("00000", pa.table({"id": ["a"], "text": ["a secret"], "reason": ["too_long"]}))
        job.summary(loss=1.5, answers={"right": 0.25})


def record(store: Store, run: str, **stages: Artifact) -> None:
    entries = {name: {"artifact": artifact.id} for name, artifact in stages.items()}
    store.put(json.dumps({"stages": entries}).encode(), "runs", f"{run}.json")


def front(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
         "chat_template.jinja", "README.md"}  # fmt: skip


def test_a_models_export_holds_the_model_and_is_called_as_it_is_known(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "Tiny-Chat.v2"
    save(source, LlamaConfig(**SHAPE))
    base = resolve(str(source), tmp_path, ("Model",), store).adopt(store)
    assert base.name == "Tiny-Chat.v2"
    made = carry_out(store, "learnt", Learnt(), {"model": {"base": base}})
    record(store, "mine", sft=made)
    export_artifact(made, str(tmp_path / "out"))
    assert names(tmp_path / "out") == MODEL
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# mine/sft" in card and front(tmp_path / "out")["base_model"] == "Tiny-Chat.v2"
    assert "| Tiny-Chat.v2 | `external-" in card and "| answers, right | 0.25 |" in card
    assert "1 rows did not make it and were left out: 1 `too_long`" in card and "rejected/" not in card
    assert str(tmp_path) not in card.split("## Recipe")[0]


def test_a_model_from_outside_is_exported_as_well(store: Store, tmp_path: Path) -> None:
    save(tmp_path / "given", LlamaConfig(**SHAPE))
    (tmp_path / "given" / "notes").mkdir()
    (tmp_path / "given" / "notes" / "rows.parquet").write_bytes(b"rows")
    base = resolve("./given", tmp_path, ("Model",), store).adopt(store)
    export_artifact(base, str(tmp_path / "out"))
    assert names(tmp_path / "out") == MODEL


class Adapted(Stage):
    """Leaves an adapter that names the artifact it was trained on, as PEFT does."""

    takes = {"model": port("Model")}
    gives = "Adapter"

    def run(self, job: Job) -> None:
        settings = {"r": 8, "base_model_name_or_path": job.input("model").id}
        (job.output / "adapter_config.json").write_text(json.dumps(settings))


def test_an_adapter_names_the_repository_of_its_base(store: Store, tmp_path: Path) -> None:
    base = resolve("hub:org/Smol-1B", tmp_path, ("Model",), store).adopt(store)
    made = carry_out(store, "adapted", Adapted(), {"model": {"base": base}})
    export_artifact(made, str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config == {"r": 8, "base_model_name_or_path": "org/Smol-1B"}
    assert front(tmp_path / "out")["base_model"] == "org/Smol-1B"
    with pytest.raises(UserError, match="org/Smol-1B is a model on a hub"):
        export_artifact(base, str(tmp_path / "base"))


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"stage": {"kind": "external", "config": {"name": "hub:org/model"}}, "hub": "org/model"}, "org/model"),
        ({"stage": {"kind": "external", "config": {"name": "."}}, "external": "/a/Smol-1.5B"}, "Smol-1.5B"),
        (
            {
                "stage": {"kind": "external", "config": {"name": "x"}},
                "external": "/c/models--org--Smol-1B/snapshots/3f0a",
            },
            "org/Smol-1B",
        ),
        ({"stage": {"kind": "external", "config": {"name": "./x/Smol.Q4_1.gguf"}}}, "Smol.Q4_1"),
        ({"stage": {"kind": "sft", "config": {}}}, "sft-1"),
    ],
)
def test_a_model_is_called_by_its_folder_file_or_repository(facts: Any, name: str, store: Store) -> None:
    assert Artifact(store, "sft-1", facts).name == name


def test_preferences_load_in_their_splits(given: Any, store: Store, tmp_path: Path) -> None:
    import datasets

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {"id": f"{i:032x}", "parents": [], "prompt": said("user", f"{i}?"), "chosen": said("assistant", "yes"),
         "rejected": said("assistant", "no"), "split": "validation" if i % 4 == 0 else "train"}
        for i in range(20)
    ]  # fmt: skip
    artifact = given("Preference", rows)
    record(store, "taste", preferences=artifact)
    export_artifact(artifact, str(tmp_path / "out"))
    assert names(tmp_path / "out") == {
        "README.md", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"
    }  # fmt: skip
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    for split in ("train", "validation"):
        wanted = [row["id"] for row in rows if row["split"] == split]
        assert loaded[split]["id"] == wanted and loaded[split][0]["chosen"] == said("assistant", "yes")
    (tmp_path / "out" / "README.md").rename(tmp_path / "card.md")  # the names of the files tell as well
    again = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache2"))
    assert {split: len(again[split]) for split in again} == {"train": 15, "validation": 5}
    card = (tmp_path / "card.md").read_text()
    assert "# taste/preferences" in card and "20 rows of Preference (15 train, 5 validation)" in card


def test_rows_of_which_some_have_no_split_stay_together(given: Any, tmp_path: Path) -> None:
    rows = [
        {"id": f"{i}", "parents": [], "prompt": [], "chosen": [], "rejected": [], "split": split}
        for i, split in enumerate(["train", None])
    ]
    artifact = given("Preference", rows)
    export_artifact(artifact, str(tmp_path / "out"))
    assert names(tmp_path / "out") == {"README.md", *artifact.parts()}


def test_a_model_goes_out_as_gguf_and_comes_back(store: Store, tmp_path: Path) -> None:
    made = carry_out(store, "learnt", Learnt(), {})
    record(store, "mine", sft=made)
    arguments = ["export", "mine/sft", "--to", str(tmp_path / "out"), "--format", "gguf", "--store", store.url]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert names(tmp_path / "out") == {"sft.gguf", "README.md"}
    assert "gguf" in front(tmp_path / "out")["tags"]
    assert read(tmp_path / "out" / "sft.gguf", tmp_path / "back")["name"] == "mine/sft"


def test_a_format_that_does_not_fit_is_refused(store: Store, given: Any, tmp_path: Path) -> None:
    rows = given("Document", [{"id": "a", "parents": [], "text": "a", "source": "s", "offset": 0}])
    made = carry_out(store, "learnt", Learnt(), {})
    for wrong, format, dtype, words in [
        (made, "ggufs", "auto", "`ggufs`.*Did you mean `gguf`"),
        (rows, "gguf", "auto", "is a dataset"),
        (made, "gguf", "q4", "`q4`. Expected auto, f32, f16, bf16"),
    ]:
        with pytest.raises(UserError, match=words):
            export_artifact(wrong, str(tmp_path / "out"), format, dtype)
    assert names(tmp_path / "out") == set()
