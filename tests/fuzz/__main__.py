"""`python -m tests.fuzz --seconds 600 --json`: every target for its share of the time; exit code 1 where there was a fault.

What a case did stands in the table, the case in `--save FOLDER` (mend it, then keep it in `corpus/TARGET`, where it is tried forever).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TARGETS = {  # and their shares of the time
    "recipes": 2, "stored_records": 1, "files": 4, "templates": 2, "chat_templates": 1, "server_answers": 1,
}  # fmt: skip


def fuzz(target: str, seconds: float, seed: int, most: int = 10**9) -> dict[str, Any]:
    """Cases, faults and the peak of memory of one target. Where a case ends the process, the next is tried in another."""
    total: dict[str, Any] = {"cases": 0, "faults": [], "peak_mb": 0}
    left, tries = seconds, 0
    while tries == 0 or (left > 0 and tries < 10):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "tests.fuzz.case_runner",
                target,
                str(seed + tries),
                str(left),
                str(most),
                folder,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                told = json.loads(done.stdout.splitlines()[-1])
            else:
                so_far = Path(folder) / "so_far"
                told = json.loads(so_far.read_text()) if so_far.exists() else {"cases": 0, "faults": []}
                case = Path(folder) / "case"
                how = f"the process ended with {done.returncode}: {done.stderr[-2000:]}"
                told["faults"].append([how, case.read_bytes().hex() if case.exists() else ""])
        total["cases"] += told["cases"]
        total["faults"] += told["faults"]
        total["peak_mb"] = max(total["peak_mb"], told.get("peak_mb", 0))
        if done.returncode == 0:
            break
        tries += 1
        left -= seconds / 10
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shares = {options.target: 1} if options.target else TARGETS
    rows = {
        name: fuzz(name, options.seconds * share / sum(shares.values()), options.seed) for name, share in shares.items()
    }
    print(f"{'target':16} {'cases':>9} {'faults':>7} {'peak MB':>8}")
    for name, told in rows.items():
        print(f"{name:16} {told['cases']:9,} {len(told['faults']):7} {told['peak_mb']:8,}")
        for fault, data in told["faults"]:
            print(f"  {fault.strip()[-600:]}\n  {bytes.fromhex(data)[:200]!r}")
            if options.save:
                (options.save / name).mkdir(parents=True, exist_ok=True)
                (options.save / name / hashlib.sha256(bytes.fromhex(data)).hexdigest()[:12]).write_bytes(
                    bytes.fromhex(data)
                )
    faults, peak = sum(len(told["faults"]) for told in rows.values()), max(told["peak_mb"] for told in rows.values())
    claims = [
        {"id": "tracebacks that garbage brought about", "value": faults, "bar": "== 0", "holds": faults == 0},
        {"id": "memory that garbage took, MB", "value": peak, "bar": "< 2048", "holds": peak < 2048},
    ]
    table = {name: {**told, "faults": len(told["faults"])} for name, told in rows.items()}
    if options.json:
        print(json.dumps({"benchmark": "fuzz", "seconds": options.seconds, "targets": table, "claims": claims}))
    sys.exit(0 if all(claim["holds"] for claim in claims) else 1)


if __name__ == "__main__":
    main()
