"""People's own Python: the file that a name stands for, the files that it is made of, and the function itself.

`mypkg.rewards:score` is the function `score` of the module `mypkg.rewards`, `rewards.py:score` that of a file. Both are looked for
in the recipe's folder first, and then where Python finds modules. Of what lies in that folder only the module and what it imports from
there is imported, so that a script called `json.py` or a folder called `engine` in it is in nobody's way.

The code's identity is the content of its file and of the modules beside it that it imports, however far: found in the syntax, without
running any of it. Files that it opens by itself are not part of it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from engine.errors import UserError, nearest
from engine.store.digest import digest_file, digest_json

ROOMS = frozenset({"flywheel", "engine", "generators", "labeling", "pipelines", "training"})
IMPORT_S = 300  # seconds that an import may take when a plan tries it
_parser = threading.Lock()  # Python's own fails where two threads parse at once (SystemError, python/cpython#106905)


@dataclass(frozen=True)
class Origin:
    """Where a module comes from.

    Attributes:
        module: its name, with dots.
        file: its source; None for one that is built into the interpreter.
        root: the folder that holds its first part.
        beside: whether that is a folder of one's own, all of which belongs to the code; of an installed package only the package does.
    """

    module: str
    file: Path | None
    root: Path
    beside: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def owns(self, top: str) -> bool:
        """Whether a module of this first name, imported by this code, is part of it."""
        if top == self.top:
            return True
        if not self.beside or top in ROOMS or top in sys.stdlib_module_names:
            return False
        if (self.root / f"{top}.py").is_file() or (self.root / top / "__init__.py").is_file():
            return True
        return (self.root / top).is_dir() and _installed(top) is None

    def files(self) -> dict[str, Path]:
        """Path below the root -> file, of the module, of the packages that it is in, and of what they import."""
        known: dict[Path, None] = {}
        pending = list(self._parts(self.module)) or ([(self.module, self.file)] if self.file else [])
        while pending:
            module, file = pending.pop()
            if file in known:
                continue
            known[file] = None
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            for name in _imports(file, package):
                if self.owns(name.partition(".")[0]):
                    pending += self._parts(name)
        return {file.relative_to(self.root).as_posix(): file for file in sorted(known)}

    def _parts(self, name: str) -> Iterator[tuple[str, Path]]:
        """The files that importing `a.b.c` runs: those of a, a.b and a.b.c."""
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            if file := _module_file(self.root, parts[:count]):
                yield ".".join(parts[:count]), file


def locate(target: str, base: str | Path) -> tuple[Origin, str]:
    """Where `MODULE:FUNCTION` or `FILE.py:FUNCTION` comes from, without importing it; and the function's name.

    Args:
        base: the folder of the recipe.

    Raises:
        UserError: it is written in another way, or there is no such module or file.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(
            f"`{target}` is no function: expected `MODULE:FUNCTION`, as in `mypkg.rewards:score` or `rewards.py:score`."
        )
    if where.endswith(".py"):
        return _origin_of_file(Path(base, Path(where).expanduser()).absolute()), name
    parts = where.split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"`{target}`: `{where}` is no module's name. A file ends in `.py`: `folder/rewards.py:{name}`.")
    root = Path(base).absolute()
    if file := _module_file(root, parts):
        return _beside(Origin(where, file, root, beside=True)), name
    if len(parts) > 1 and (root / parts[0] / "__init__.py").is_file():
        raise UserError(
            f"`{target}`: the package {root / parts[0]} has no module `{where}`.{nearest(where, _modules(root, parts[:-1]))}"
        )
    return _origin_installed(target, where, root), name


def sources(target: str, base: str | Path) -> dict[str, str]:
    """Digests of the files that a function is made of, by their path from the recipe's folder; those of an installed package by module.

    Raises:
        UserError: there is no such module.
    """
    origin, _ = locate(target, base)
    told = digests(origin)
    if not origin.beside:
        return told
    return {
        Path(os.path.relpath(origin.root / name, Path(base).absolute())).as_posix(): digest
        for name, digest in told.items()
    }


def digests(origin: Origin) -> dict[str, str]:
    """SHA-256 of each of the files of a module (`Origin.files`)."""
    return {name: _digest(file) for name, file in origin.files().items()}


def package_digests(module: str) -> dict[str, str]:
    """The same of an installed module, and of every file of the package that it is in: templates and tables, too."""
    origin = origin_of(module)
    if origin is None or origin.file is None:
        return {}
    folder = origin.file.parent
    inside = [f for f in folder.rglob("*") if f.is_file()] if (folder / "__init__.py").is_file() else []
    files = {file.relative_to(origin.root).as_posix(): file for file in inside}
    shown = {name: f for name, f in files.items() if "__pycache__" not in f.parts and not f.name.startswith(".")}
    return {**{name: _digest(file) for name, file in sorted(shown.items())}, **digests(origin)}


def origin_of(module: str) -> Origin | None:
    """Where a module comes from that Python finds by itself; None for one without a file, as in a notebook."""
    parts = module.split(".")
    spec = _installed(parts[0])
    for count in range(2, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), spec.submodule_search_locations) if spec else None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None
    file = Path(spec.origin).absolute()
    above = len(parts) if file.name == "__init__.py" else len(parts) - 1
    return Origin(module, file, file.parents[above], beside=False)


@cache
def load(target: str, base: str) -> Callable[..., Any]:
    """Import a function, once a process.

    Raises:
        UserError: there is no such module or function, or importing it fails: with the line and the exception.
    """
    origin, name = locate(target, base)
    _serve(origin)
    try:
        value: Any = importlib.import_module(origin.module)
    except (Exception, SystemExit) as error:
        raise UserError(f"`{target}` can't be imported: {failure(error, origin.root)}.") from error
    for part in name.split("."):
        if not hasattr(value, part):
            raise UserError(
                f"`{target}`: {origin.file or origin.module} has no `{part}`.{nearest(part, _callables(value))}"
            )
        value = getattr(value, part)
    if not callable(value) or inspect.iscoroutinefunction(value):
        what = "an `async` function" if callable(value) else f"a {type(value).__name__}"
        raise UserError(f"`{target}` is {what}; expected a function that gives its result when it is called.")
    return value


def arguments(function: Callable[..., Any], target: str, keywords: Sequence[str]) -> list[str]:
    """Which of the keyword arguments that it is offered a function takes: all of them if it has `**kwargs`.

    Raises:
        UserError: it needs another one, or can't be asked.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise UserError(
            f"`{target}`: Python can't tell which arguments it takes; wrap it in a function of your own."
        ) from None
    offered = f"It is called with {', '.join(keywords)}, by name."
    for parameter in parameters:
        needed = parameter.default is parameter.empty
        if parameter.kind is parameter.POSITIONAL_ONLY and needed:
            raise UserError(f"`{target}` takes `{parameter.name}` by position alone. {offered}")
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and needed and parameter.name not in keywords:
            close = nearest(parameter.name, keywords)
            raise UserError(f"`{target}` needs an argument `{parameter.name}`.{close} {offered}")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return list(keywords)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not named & set(keywords):
        raise UserError(f"`{target}` takes none of the arguments that it would get. {offered}")
    return [name for name in keywords if name in named]


def check(target: str, base: str | Path, keywords: Sequence[str]) -> str:
    """Import a function in a process of its own and see whether it takes these arguments, without calling it.

    Returns:
        one line for the plan: its name, and a digest of its files.

    Raises:
        UserError: as `load` and `arguments`; or the import doesn't come to an end.
    """
    digest = digest_json(sources(target, base))
    # Apart, so that what its import prints, changes or breaks stays there, and an edited file counts at once in a notebook.
    command = [sys.executable, "-P", "-m", "engine.user_code", target, str(Path(base).absolute()), *keywords]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=IMPORT_S)
    except subprocess.TimeoutExpired:
        raise UserError(f"`{target}`: its import had not ended after {IMPORT_S} s.") from None
    told = done.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2]
    if done.returncode == UserError.exit_code and told.startswith('"'):
        raise UserError(json.loads(told))
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise UserError(
            f"`{target}` can't be imported: the process that tried ended with {done.returncode}. {last}".rstrip()
        )
    return f"python: {target} (digest {digest[:12]})"


def failure(error: BaseException, root: Path | None = None) -> str:
    """An exception as `FILE:LINE: its last line`, where it came from a file below the root."""
    told = traceback.format_exception_only(error)[-1].strip().rstrip(".") or type(error).__name__
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if root is None or Path(f.filename).is_relative_to(root)
    ]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {told}"
    return f"{frames[-1].filename}:{frames[-1].lineno}: {told}" if frames else told


class _Beside:
    """Finds the modules of one's own code, and nothing else that lies in their folder."""

    def __init__(self, root: Path, tops: frozenset[str]) -> None:
        self.root, self.tops = root, tops

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(self.root)]) if path is None and name in self.tops else None


def _serve(origin: Origin) -> None:
    """Have Python find this code."""
    if not origin.beside:
        return
    tops = frozenset(Path(name).parts[0].removesuffix(".py") for name in origin.files()) | {origin.top}
    for finder in [finder for finder in sys.meta_path if isinstance(finder, _Beside)]:
        if finder.root != origin.root and finder.tops & tops:  # another recipe's, of the same name
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if name.partition(".")[0] in finder.tops]:
                del sys.modules[name]
    importlib.invalidate_caches()
    sys.meta_path.insert(0, _Beside(origin.root, tops))  # pyright: ignore[reportArgumentType]


def _beside(origin: Origin) -> Origin:
    """The origin, if its name is nobody else's.

    Raises:
        UserError: it is that of a module which this process needs itself.
    """
    top = origin.top
    if top in ROOMS or top in sys.stdlib_module_names:
        whose = "a package of Flywheel's own" if top in ROOMS else "a module of Python's own"
        raise UserError(f"{origin.file} can't be imported: `{top}` is {whose}. Give yours another name.")
    spec = _installed(top)
    theirs = Path(spec.origin) if spec and spec.origin else None
    ours = _module_file(origin.root, [top])
    if theirs and theirs.is_file() and ours and digest_file(theirs) != digest_file(ours):
        raise UserError(
            f"`{top}` is both {ours} and {theirs}, which is installed. Give yours another name, so that it is clear which is meant."
        )
    return origin


def _origin_of_file(file: Path) -> Origin:
    if not file.is_file():
        known = [one.name for one in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise UserError(f"there is no file {file}.{nearest(file.name, known)}")
    parts, root = [] if file.name == "__init__.py" else [file.stem], file.parent
    while (root / "__init__.py").is_file():  # a module of a package, which may import its neighbours
        parts.insert(0, root.name)
        root = root.parent
    return _beside(Origin(".".join(parts), file, root, beside=True))


def _origin_installed(target: str, module: str, root: Path) -> Origin:
    try:
        origin = origin_of(module)
        found = origin is not None or module in sys.builtin_module_names
    except (ImportError, ValueError):
        origin, found = None, False
    if not found:
        close = nearest(module, _modules(root, module.split(".")[:-1]))
        raise UserError(f"`{target}`: there is no module `{module}`, neither in {root} nor installed.{close}")
    return origin or Origin(module, None, root, beside=False)


def _installed(top: str) -> ModuleSpec | None:
    """Where Python finds a name by itself: without the finders that serve people's code."""
    for finder in sys.meta_path:
        find = None if isinstance(finder, _Beside) else getattr(finder, "find_spec", None)
        if find and (spec := find(top, None, None)):
            return spec
    return None


def _digest(file: Path) -> str:
    told = file.stat()
    if time.time() - told.st_mtime < 2:  # another edit may leave time and size as they are
        return digest_file(file)
    return _digest_of(file, told.st_mtime_ns, told.st_size)


@lru_cache(4096)
def _digest_of(file: Path, changed: int, size: int) -> str:
    return digest_file(file)


def _module_file(root: Path, parts: Sequence[str]) -> Path | None:
    place = root.joinpath(*parts)
    for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if file.is_file():
            return file
    return None


def _modules(root: Path, parents: Sequence[str]) -> list[str]:
    """Names of the modules in a folder below the root, for the nearest spelling."""
    folder = root.joinpath(*parents)
    if not folder.is_dir():
        return []
    found = [p.stem for p in folder.glob("*.py")] + [p.parent.name for p in folder.glob("*/__init__.py")]
    return [".".join([*parents, name]) for name in found if name != "__init__"]


def _callables(value: Any) -> list[str]:
    return [name for name in dir(value) if not name.startswith("_") and callable(getattr(value, name, None))]


def _imports(file: Path, package: str) -> list[str]:
    """The modules that a file names in its imports, wherever in it; what is imported from a package may be one, too."""
    try:
        with _parser:
            tree = ast.parse(file.read_bytes()) if file.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError):
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            where = ".".join([*above, *([node.module] if node.module else [])])
            names += [where, *(f"{where}.{alias.name}" for alias in node.names)]
    return [name for name in names if name]


def _main() -> int:
    """What `check` starts. Prints one line of JSON: what is wrong, in words."""
    target, base, *keywords = sys.argv[1:]
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the import prints is not the answer
    try:
        arguments(load(target, base), target, keywords)
    except UserError as error:
        answer.write(json.dumps(str(error)) + "\n")
        answer.flush()
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = _main()
    sys.stdout.flush()
    os._exit(code)  # whatever the import started
