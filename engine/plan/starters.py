"""The recipes to start from: those in `recipes/`, which come with Flywheel, and copies of them.

A recipe is `NAME.yaml`; files that it needs are in the folder `NAME` beside it. Its first comment says what it does, and a comment
`# change: ...` beside a line what to put there.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError, nearest

HOME = Path(__file__).resolve().parents[2] / "recipes"
CHANGE = re.compile(r"#\s*change:\s*(.+?)\s*$")
NAMED = re.compile(r"^name: *\S.*$", re.M)


@dataclass(frozen=True)
class Starter:
    """A recipe to start from.

    Attributes:
        what: what it does, in a sentence.
    """

    name: str
    what: str

    @property
    def recipe(self) -> Path:
        return HOME / f"{self.name}.yaml"

    def files(self) -> list[Path]:
        """What the recipe needs beside it, relative to its folder."""
        found = (HOME / self.name).rglob("*")
        return sorted(one.relative_to(HOME) for one in found if one.is_file() and "__pycache__" not in one.parts)


def starters() -> list[Starter]:
    """All of them, by name."""
    return [Starter(file.stem, _first_comment(file)) for file in sorted(HOME.glob("*.yaml"))]


def start(name: str, source: str | None, folder: Path) -> tuple[list[Path], list[tuple[int, str]]]:
    """Copy a recipe and its files; nothing that is there is overwritten.

    Args:
        name: of the new recipe; without a `source`, that of the recipe to copy.
        folder: where to.

    Returns:
        the files written, the recipe first; and what to change in the recipe, by line.

    Raises:
        UserError: there is no such recipe, or a file is in the way.
    """
    name = name.removesuffix(".yaml")
    if not re.fullmatch(r"[\w-]{1,100}", name):
        raise UserError(
            f"`{name}` is no name for a recipe: expected letters, digits, `-` and `_`. It goes into this folder."
        )
    known = {starter.name: starter for starter in starters()}
    wanted = source or name
    if wanted not in known:
        hint = "" if source else f" To call a copy of one of them `{name}`: flywheel new {name} --from RECIPE."
        raise UserError(
            f"there is no recipe `{wanted}` to start from.{nearest(wanted, known)} Recipes: {', '.join(known)}.{hint}"
        )
    starter = known[wanted]
    text = NAMED.sub(f"name: {name}", starter.recipe.read_text(encoding="utf-8"), count=1)
    recipe = folder / f"{name}.yaml"
    files = [folder / file for file in starter.files()]
    sources = dict(zip(files, starter.files(), strict=True))
    there = [one for one in (recipe, *files) if one.exists() and (one == recipe or not _same(one, HOME / sources[one]))]
    if there:
        more = f" and {len(there) - 3} more" if len(there) > 3 else ""
        told = f"{', '.join(map(str, there[:3]))}{more}: there already, and not overwritten"
        raise UserError(f"{told}. Nothing was written; start in another folder, or move what is there.")
    for target, file in sources.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HOME / file, target)
    recipe.write_text(text, encoding="utf-8")
    changes = [(number, found[1]) for number, line in enumerate(text.splitlines(), 1) if (found := CHANGE.search(line))]
    return [recipe, *files], changes


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and one.read_bytes() == other.read_bytes()


def _first_comment(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
