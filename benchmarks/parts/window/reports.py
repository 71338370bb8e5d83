"""Reports as people get them, of three runs: the quickstart, one that generates, one that has answers ranked; and their pictures."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import Claim, claim
from benchmarks.parts.window.walk import FLYWHEEL, ROOT, quickstart
from benchmarks.real import MODEL, gguf_file
from tests.chromium import chromium, missing

HERE = Path(__file__).parent
OWN = ("generation", "labelling")  # recipes beside this file
SIZE = (1200, 1780)  # pixels of a picture
INTERVAL = re.compile(r"\d.* (?:95 % )?interval [-.\d%]+ to [-.\d%]+")


def reports(folder: Path, told: dict[str, Any], pictures: Path | None = None) -> list[Claim]:
    """Run what is not in the store in this folder yet, write the three pages and take their pictures."""
    if lacking := missing():
        raise SystemExit(lacking)
    store = folder / "store"
    quickstart(folder, store, told)
    environment = {**os.environ, "FLYWHEEL_HOME": str(folder / "home")}
    for name, target in ((MODEL, gguf_file()), *((one, ROOT / "recipes" / one) for one in ("quickstart", "rag_or_finetune"))):  # fmt: skip
        if not (folder / name).exists():
            (folder / name).symlink_to(target)
    try:
        for name in OWN:
            (folder / f"{name}.yaml").write_text((HERE / f"{name}.yaml").read_text())
            _flywheel(folder, environment, "run", f"{name}.yaml", "--store", str(store))
    finally:
        subprocess.run([*FLYWHEEL, "argilla", "down"], cwd=ROOT, env=environment, capture_output=True)
    claims: list[Claim] = []
    with chromium(*SIZE) as chrome:
        for run in ("quickstart", *OWN):
            page = folder / f"{run}.html"
            _flywheel(folder, environment, "report", run, "--store", str(store), "--to", str(page))
            first = re.search(r'<p class="finding first"><small>(.*?)</small>(.*?)</p>', page.read_text(), re.DOTALL)
            asked, came_out = (" ".join(html.unescape(one).split()) for one in (first.groups() if first else ("", "")))
            chrome.get(page.as_uri())
            if pictures:
                chrome.save_screenshot(str(pictures / ("report.png" if run == "quickstart" else f"report-{run}.png")))
            top = chrome.find_elements("css selector", ".finding.first")[0].rect
            seen = chrome.get_log("browser")
            holds = bool(asked and INTERVAL.search(came_out)) and top["y"] < 200 and not seen
            claims.append(claim(f"report.{run}", {"asked": asked, "came_out": came_out}, "a sentence with an interval stands on top", holds))  # fmt: skip
    return claims


def _flywheel(folder: Path, environment: dict[str, str], *arguments: str) -> None:
    done = subprocess.run([*FLYWHEEL, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"flywheel {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
