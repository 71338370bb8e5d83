"""What was damaged is made anew with the digests of before: that, and nothing else; a repair that is killed goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engine.upkeep.repair
from engine.plan.inputs import PlainInput, resolve
from engine.store.store import Store
from engine.upkeep.repair import Mended, repair
from engine.upkeep.verification import verify
from tests.engine.upkeep.conftest import at, change_manifest, contents, digests, flip


def well(mended: list[Mended]) -> bool:
    return bool(mended) and all(one.well for one in mended)


def part_of(store: Store, name: str) -> Path:
    artifact = store.find(name)
    return at(artifact) / artifact.files()[0]


@pytest.mark.parametrize("name", ["lines", "loud", "louder", "model", "other"])
@pytest.mark.parametrize("change", ["flipped", "gone", "empty", "no artifact"])
def test_a_damaged_artifact_is_what_it_was(kept: Store, in_process: list[str], name: str, change: str) -> None:
    folder, before, files = kept.find(f"toy/{name}").id, digests(kept), contents(Path(kept.root) / "artifacts")
    if change == "no artifact":
        kept.fs.rm(kept.path("artifacts", folder), recursive=True)
    elif change == "gone":
        part_of(kept, f"toy/{name}").unlink()
    elif change == "empty":
        part_of(kept, f"toy/{name}").write_bytes(b"")
    else:
        flip(part_of(kept, f"toy/{name}"))
    (mended,) = repair(kept)
    leaf = change == "no artifact" and name in ("model", "other")
    assert mended.well and mended.told.endswith("nothing tells which digest it had" if leaf else "it is what it was")
    assert in_process == [folder]  # and nothing that was made of it
    assert digests(kept) == before and contents(Path(kept.root) / "artifacts") == files
    assert verify(kept).whole and repair(kept) == []
    assert not kept.list("aside") and not kept.list("repairs")


def test_random_bits_all_over_the_store(kept: Store, in_process: list[str]) -> None:
    """Several files at once, again and again."""
    random_, root = random.Random(11), Path(kept.root)
    before, files = digests(kept), contents(root / "artifacts")
    for _ in range(8):
        there = [path for place in ("artifacts", "runs") for path in sorted((root / place).rglob("*"))]
        there = [path for path in there if path.is_file() and path.stat().st_size and path.name != "stage.log"]
        for file in random_.sample(there, 3):
            flip(file, random_.randrange(file.stat().st_size * 8))
        assert not verify(kept).whole
        assert well(repair(kept)), verify(kept).damage
        assert verify(kept).whole, verify(kept).damage
        assert digests(kept) == before
    assert {n: d for n, d in contents(root / "artifacts").items() if n in files} == files


def test_damage_of_inputs_is_mended_before_what_is_made_of_them(kept: Store, in_process: list[str]) -> None:
    before = digests(kept)
    for name in ("louder", "lines", "model"):
        flip(part_of(kept, f"toy/{name}"))
    mended = repair(kept, "toy/model")
    assert well(mended) and digests(kept) == before
    assert in_process == [kept.find(f"toy/{name}").id for name in ("lines", "louder", "model")]


def test_what_was_made_of_damage_follows(kept: Store, in_process: list[str]) -> None:
    """`louder` was made of a `loud` with another digest than the true one: it is made anew, and the model after it."""
    loud, louder, before = kept.find("toy/loud"), kept.find("toy/louder"), digests(kept)
    inputs = {"documents": [{"name": "loud", "artifact": loud.id, "digest": "0" * 64}]}
    change_manifest(kept, louder.id, inputs=inputs)
    flip(part_of(kept, "toy/loud"))
    assert well(repair(kept)) and digests(kept) == before and verify(kept).whole
    assert in_process == [loud.id, louder.id]  # which is what it was, so that the model stays


def test_other_bytes_than_before_are_told(kept: Store, in_process: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from toy import ToyShout  # pyright: ignore[reportMissingImports]

    run = ToyShout.run
    monkeypatch.setattr(ToyShout, "run", lambda self, job: run(self.model_copy(update={"times": self.times + 1}), job))
    flip(part_of(kept, "toy/loud"))
    mended = repair(kept)
    assert "it is NOT what it was: other bytes than before" in mended[0].told and "toy/louder" in mended[0].told
    assert in_process == [kept.find(f"toy/{name}").id for name in ("loud", "louder", "model")]
    assert verify(kept).whole


@pytest.mark.parametrize("how", ["cut", "empty", "flipped identity", "flipped inputs", "gone"])
@pytest.mark.parametrize("name", ["lines", "louder", "model"])
def test_a_damaged_manifest(kept: Store, in_process: list[str], how: str, name: str) -> None:
    before, folder = digests(kept), kept.find(f"toy/{name}").id
    file = Path(kept.path("artifacts", folder, "manifest.json"))
    text = file.read_text()
    damaged = {
        "cut": text[: len(text) // 2], "empty": "", "flipped identity": text.replace('"identity"', '"idantity"'),
        "flipped inputs": text.replace('"inputs"', '"inpuds"'), "gone": None,
    }[how]  # fmt: skip
    if damaged is None:
        file.unlink()
    else:
        file.write_text(damaged)
    assert well(repair(kept)) and digests(kept) == before and verify(kept).whole
    whole = (
        {"flipped identity", "flipped inputs"}
        if name == "model"
        else {"cut", "empty", "flipped identity", "flipped inputs", "gone"}
    )
    assert in_process == ([] if how in whole else [folder])  # files that are proven whole are kept: weights cost days


def test_a_manifest_and_the_record_of_its_run(kept: Store, in_process: list[str]) -> None:
    before, folder = digests(kept), kept.find("toy/other").id
    file = Path(kept.path("artifacts", folder, "manifest.json"))
    file.write_text(file.read_text().replace('"identity"', '"idantity"'))
    Path(kept.path("runs", "toy.json")).write_text("")
    record, artifact = repair(kept)
    assert not record.well and "nothing of it can be believed" in record.told and "Running its recipe" in record.told
    assert artifact.well and digests(kept) == before


def test_a_record_is_rebuilt_from_what_can_be_believed(kept: Store, in_process: list[str]) -> None:
    whole = kept.run("toy")
    assert whole
    file = Path(kept.path("runs", "toy.json"))
    text = file.read_text()
    for damaged in (
        text[:-300],
        text.replace('"version": 1', '"versiox": 1', 2),
        text.replace('"inputs": {', '"inputs: {', 1),
    ):
        file.write_text(damaged)
        (mended,) = repair(kept, "toy")
        assert mended.well and "louder" in mended.told
        again = kept.run("toy")
        assert again and again["recipe"] == "toy.yaml" and verify(kept).whole
        assert {k: again["stages"][k]["artifact"] for k in again["stages"]} == {
            k: whole["stages"][k]["artifact"] for k in whole["stages"] if k in again["stages"]
        }
        assert len(again["stages"]) >= 4 and (Path(kept.root) / "aside" / "runs" / "toy.json").read_text() == damaged
    assert in_process == []


def test_a_dry_run_changes_nothing(kept: Store, in_process: list[str]) -> None:
    flip(part_of(kept, "toy/loud"))
    (at(kept.find("louder")) / "extra.bin").write_bytes(b"x")
    Path(kept.path("runs", "toy.json")).write_text("{")
    before = {path: path.read_bytes() for path in Path(kept.root).rglob("*") if path.is_file()}
    told = [one.told for one in repair(kept, dry_run=True)]
    assert any("would be made anew by `toy_shout`" in one for one in told) and any(
        "would be set aside" in one for one in told
    )
    assert (
        before == {path: path.read_bytes() for path in Path(kept.root).rglob("*") if path.is_file()}
        and in_process == []
    )


def test_the_old_one_comes_back_where_the_new_one_fails(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(part_of(kept, "toy/loud"))
    flip(part_of(kept, "toy/louder"))
    damaged = contents(Path(kept.root) / "artifacts")

    def fail(*_: Any) -> None:
        from engine.errors import StageFailed

        raise StageFailed("the server is gone")

    monkeypatch.setattr(engine.upkeep.repair, "make", fail)
    first, second = repair(kept)
    assert not first.well and "the server is gone" in first.told
    assert not second.well and "it is made of toy/loud, which could not be made anew" in second.told
    assert contents(Path(kept.root) / "artifacts") == damaged and not kept.list("aside")


@pytest.mark.parametrize("moment", ["set aside", "half made", "made"])
def test_a_repair_that_was_killed_goes_on(
    kept: Store, in_process: list[str], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    before, folder = digests(kept), kept.find("toy/louder").id
    flip(part_of(kept, "toy/louder"))
    real = engine.upkeep.repair.make

    class Killed(BaseException):
        pass

    def die(where: Store, stage: Any, *rest: Any) -> Any:
        if moment == "half made":
            made = real(where, stage, *rest)
            (at(made) / "manifest.json").unlink()
            (at(made) / made.parts()[-1]).unlink()
        if moment == "made":
            real(where, stage, *rest)
        raise Killed

    monkeypatch.setattr(engine.upkeep.repair, "make", die)
    with pytest.raises(Killed):
        repair(kept)
    assert kept.list("aside") == [folder]
    monkeypatch.setattr(engine.upkeep.repair, "make", real)
    assert well(repair(kept)) and digests(kept) == before and verify(kept).whole
    assert not kept.list("aside") and not kept.list("repairs")


def test_files_that_are_needed_and_gone_are_named(kept: Store, in_process: list[str], tmp_path: Path) -> None:
    flip(part_of(kept, "toy/lines"))
    text = (tmp_path / "lines.txt").read_text()
    (tmp_path / "lines.txt").write_text("something else")
    (mended,) = repair(kept)
    assert not mended.well and "it needs lines.txt as it was" in mended.told and "--base FOLDER" in mended.told
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "lines.txt").write_text(text)
    assert well(repair(kept, base=tmp_path / "moved")) and verify(kept).whole


def test_another_version_of_a_stage_gives_other_bytes(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from toy import ToyShout  # pyright: ignore[reportMissingImports]

    flip(part_of(kept, "toy/loud"))
    monkeypatch.setattr(ToyShout, "version", 2)
    mended = repair(kept)
    assert "`toy_shout` is at version 2 here and was at 1" in mended[0].told


@pytest.mark.parametrize("how", ["data", "manifest", "all"])
def test_rows_that_people_brought_are_read_again(store: Store, tmp_path: Path, how: str) -> None:
    (tmp_path / "faq.csv").write_text("q,a\n" + "".join(f"question {i},answer {i}\n" for i in range(9)))
    wanted = PlainInput("./faq.csv", {"prompt": "q", "reference": "a"}, kind="Prompt")
    made = resolve(wanted, tmp_path, ("Prompt",), store).adopt(store)
    files = contents(at(made))
    if how == "data":
        flip(at(made) / made.parts()[0])
    elif how == "manifest":
        (at(made) / "manifest.json").write_text(
            (at(made) / "manifest.json").read_text().replace('"digest"', '"digesd"')
        )
    else:
        flip(at(made) / made.parts()[0])
        (at(made) / "manifest.json").write_text(
            (at(made) / "manifest.json").read_text().replace('"timings"', '"timinks"')
        )
    assert well(repair(store)) and contents(at(made)) == files and verify(store).whole
    flip(at(made) / made.parts()[0])
    (tmp_path / "faq.csv").write_text("q,a\nother,rows\n")
    (mended,) = repair(store)
    assert (
        not mended.well and "it came from ./faq.csv, which is not there any more, or is not what it was" in mended.told
    )


def test_strange_files_are_set_aside(kept: Store, in_process: list[str]) -> None:
    model = kept.find("toy/model")
    (at(model) / "model.safetensors").write_bytes(b"planted")
    flip(at(model) / "README.md")
    card = (at(model) / "README.md").read_bytes()
    assert well(repair(kept)) and verify(kept).whole and in_process == []
    aside = Path(kept.root) / "aside" / model.id
    assert (aside / "model.safetensors").read_bytes() == b"planted" and (aside / "README.md").read_bytes() == card
    assert (at(model) / "README.md").read_bytes() != card and not (at(model) / "model.safetensors").exists()


def test_the_command_repairs_with_a_worker(kept: Store, flywheel: Callable[..., Any]) -> None:
    before = digests(kept)
    flip(part_of(kept, "toy/other"))
    done = flywheel("repair", "--json")
    (mended,) = json.loads(done.stdout)
    assert done.returncode == 0 and mended["well"] and digests(Store(kept.url)) == before
    assert verify(Store(kept.url)).whole


def test_damaged_work_is_set_aside(kept: Store) -> None:
    """A journal that is left would be played into the next database."""
    answers, work = kept.workplace() / "answers" / "answers.sqlite", kept.workplace() / "toy_train-00ff00ff00ff00ff"
    for file in (answers, answers.with_name("answers.sqlite-wal"), work / "checkpoint.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"{no database, and no JSON")
    (work / "spec.json").write_text("{}")
    mended = repair(kept)
    assert well(mended) and len(mended) == 2 and verify(kept).whole
    aside = Path(kept.root) / "aside" / "work"
    assert sorted(p.relative_to(aside).as_posix() for p in aside.rglob("*") if p.is_file()) == [
        "answers/answers.sqlite", "answers/answers.sqlite-wal", "toy_train-00ff00ff00ff00ff/checkpoint.json",
    ]  # fmt: skip
    assert not list(answers.parent.iterdir()) and (work / "spec.json").exists()
