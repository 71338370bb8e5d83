"""Argilla's own tests of search engines (of its server's source release), against the engine of the local server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from labeling.argilla.server import environment

_EMBEDDED = Path(environment.__file__).with_name("embedded")
_FIXTURES = Path(__file__).with_name("contract_fixtures.py")
# What the tests are run with: Argilla's own choice, of the time of its release.
_TOOLS = ("pytest<8", "pytest-asyncio~=0.21.1", "pytest-mock>=3.12", "factory-boy~=3.2.1")
_TESTS = "tests/unit/search_engine/test_commons.py"
MAPPING = "asks for the mapping"
EXPLAINED = {
    "test_index_records_with_none_field_values": "it compares with its own record, whose custom field Elasticsearch's engine has turned into "
    "text in memory by indexing it; ours leaves what it is given as it is",
    "test_compute_metrics_for[seq_float-expected_metrics2]": "Elasticsearch keeps numbers of 32 bits, and tells 120020.1328125 where 120020.13 "
    "was stored; ours tells 120020.13",
}


def engine_contract(found: dict[str, Any]) -> list[tuple[str, Any, str, bool]]:
    """How many of the tests that ask an engine something pass; those about Elasticsearch's mapping ask nothing of ours.

    Reads the release from the package index, and installs what runs its tests into a temporary folder.
    """
    bar = "85 of 92 passed, each of the rest explained"
    with tempfile.TemporaryDirectory(prefix="flywheel-argilla-contract-") as name:
        folder = Path(name)
        try:
            release = _release(folder)
        except subprocess.CalledProcessError as error:
            found["engine_contract"] = {"error": error.stderr[-2000:]}
            return [("engine_contract", None, f"{bar}: the source release could not be had", False)]
        cases = _cases(release, folder)
    states = Counter(state for state, _ in cases.values())
    missed = {name: why[:300] for name, (state, why) in cases.items() if state != "passed" and MAPPING not in why}
    mappings = sum(state == "skipped" and MAPPING in why for state, why in cases.values())
    asked = len(cases) - mappings
    found["engine_contract"] = {
        "tests": len(cases),
        "about_elasticsearch_mappings": mappings,
        **states,
        "not_passed": {name: EXPLAINED.get(name, why) for name, why in missed.items()},
    }
    whole = states["passed"] >= 85 and asked >= 92 and missed.keys() <= EXPLAINED.keys()
    return [("engine_contract", f"{states['passed']} of {asked}", bar, whole)]


def _release(folder: Path) -> Path:
    """The unpacked source release of the server that is installed, ours in the place of its engines' fixtures."""
    pins = environment.requirements().read_text().splitlines()
    (pin,) = [line.split(";")[0].strip() for line in pins if line.startswith("argilla-server==")]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        "argilla-server",
        pin,
        "-d",
        str(folder),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    with tarfile.open(next(folder.glob("argilla_server-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    (release,) = (path for path in folder.glob("argilla_server-*") if path.is_dir())
    shutil.copy(_FIXTURES, release / Path(_TESTS).with_name("conftest.py"))
    return release


def _cases(release: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """What became of each test, and why: its name -> state, message."""
    python, tools, report = environment.ensure(lambda _: None), folder / "tools", folder / "report.xml"
    install = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "-q",
        "--python",
        str(python),
        "--target",
        str(tools),
        *_TOOLS,
    ]
    subprocess.run(install, check=True, capture_output=True, text=True)
    settings = {
        "ARGILLA_HOME_PATH": str(folder / "argilla"),
        "ARGILLA_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'contract.db'}",
        "ARGILLA_SEARCH_ENGINE": "opensearch",  # the tests skip themselves for any other; which one they get is a fixture
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join((str(tools), str(release), str(_EMBEDDED))),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ARGILLA_", "PYTEST"))}
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        _TESTS,
        "-c",
        os.devnull,
        "--rootdir",
        str(release),
        f"--junitxml={report}",
    ]
    done = subprocess.run(command, cwd=release, env={**kept, **settings}, capture_output=True, text=True)
    if not report.exists():
        raise RuntimeError(f"Argilla's tests did not run:\n{(done.stdout + done.stderr)[-4000:]}")
    cases: dict[str, tuple[str, str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        child = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        state = "passed" if child is None else {"failure": "failed", "error": "failed"}.get(child.tag, child.tag)
        cases[str(case.get("name"))] = state, "" if child is None else str(child.get("message"))
    return cases
