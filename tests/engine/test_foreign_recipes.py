from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.plan.recipe import load_recipe

STAGES = "stages: {a: {kind: read, paths: ['*.txt']}}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: " + "[" * 300_000, "more than 100 deep"), ("\n".join(" " * i + "a:" for i in range(300)), "more than 100 deep"),
        ("a: &a [*a]", "holds itself"), ("a: &a {<<: *a}", "holds itself"), ("a: {<<: [1, 2]}", "not YAML"),
        ("a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)), "repeats itself"),
        ("a: [" + "1," * 400_000 + "1]", "values"), ("#" * (17 << 20), "no recipe"), ("a: !!python/object/apply:os.system ['id']", "not YAML"),
        ("name: !!binary aGVsbG8=\n" + STAGES, "`!!binary` is no type"), ("stages: !!set {a, b}", "`!!set` is no type"),
        ("name: 2020-13-45", "not YAML"), ("seed: " + "9" * 30 + "\n" + STAGES, "larger than any"), ("seed: 0x" + "f" * 30, "larger than any"),
        ("stages: {a: {kind: read, paths: [x], max_failed: .nan}}", "no number"), ("stages: {a: {kind: read, paths: [x], max_bytes: 1.0e+400}}", "no number"),
        ("name: 'a\u202eb'\n" + STAGES, "that can be seen"), ("name: caf\udce9\n" + STAGES, "byte 0xe9 here is not"),
        ("stages: {a: {kind: " + "x" * 100_000 + "}}", "no stage kind"), ("x" * 100_000 + ": 1", "YAML"),
    ],
    ids=lambda text: text[:30].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_a_recipe_that_is_none_is_refused_in_words(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "r.yaml")
    assert told in str(error.value) and len(str(error.value)) < 4000


def test_what_is_no_file_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in (
        tmp_path,
        tmp_path / "pipe",
        Path("/dev/zero"),
        tmp_path / "loop",
        tmp_path / "a\0b",
        Path("x" * 5000),
    ):
        with pytest.raises(UserError, match="recipe"):
            load_recipe(place)


def test_marks_and_line_ends_of_windows_are_taken(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfname: x\r\n" + STAGES.encode())
    assert load_recipe(tmp_path / "r.yaml").name == "x"


@pytest.mark.parametrize(
    "setting", ["seed=" + "9" * 5000, "a=" + "[" * 5000, "name=\udce9", "\x1b[31m=1", "a.x=&a [*a]", "x" * 5000 + "=1"]
)
def test_settings_too(setting: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(STAGES)
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "r.yaml", [setting])
    assert len(str(error.value)) < 4000 and "\x1b" not in str(error.value) and str(error.value).encode()
