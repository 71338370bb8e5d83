"""What a stage leans on goes away and comes back while it works: the server that it asks, Argilla, its Redis, the store's S3."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

from engine.store.store import Store
from tests.faults.gate import Gate
from tests.faults.ground import Ground, commandline
from tests.faults.outcome import Outcome


def server_away(ground: Ground, stage: str, seconds: float, seed: int) -> Outcome:
    """The server that answers refuses connections for some seconds: it is asked again, and the rows are the same."""
    fault, kind = "the server goes and comes back", ground.kind_of[stage]
    draw = random.Random(seed)
    with ground.trial(stage) as trial:
        ground.gate.shut()
        process = trial.start()
        begun = trial.begun(process)
        time.sleep(seconds * draw.random())
        ground.gate.open()
        time.sleep(draw.random())
        ground.gate.shut()
        time.sleep(seconds * draw.random())
        ground.gate.open()
        code = trial.end(process)
        if code and begun and "Traceback" not in trial.said and "flywheel: " in trial.said:
            came, detail = trial.finish()
            return Outcome(fault, kind, "told" if came == "same" else came, detail)
        return Outcome(fault, kind, *trial.judge(code))


def argilla_away(ground: Ground, stage: str, which: str, seed: int) -> Outcome:
    """`kill -9` of a part of Argilla while answers are labelled."""
    fault, kind = f"kill -9 of Argilla's {which}", ground.kind_of[stage]
    words = {"server": "serve.py", "redis": "redis-server", "supervisor": "supervise.py"}
    with ground.trial(stage) as trial:
        process = trial.start()

        def parts() -> list[int]:
            return [one for one in trial.argilla() if words[which] in commandline(one)]

        if not trial.wait(process, parts):
            return Outcome(fault, kind, "unhurt")
        time.sleep(random.Random(seed).random() * 12)
        over = process.poll() is not None
        for one in parts():
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        code = trial.end(process)
        told = code and "Traceback" not in trial.said and "flywheel: " in trial.said
        came, detail = trial.finish() if told else trial.judge(code)
        if came == "same":
            came = "unhurt" if over else "told" if told else "same"
        return Outcome(fault, kind, came, detail)


@contextmanager
def bucket() -> Generator[tuple[Gate, dict[str, str]]]:
    """An S3 server of its own (moto's), behind a gate, and the environment that leads there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        gate = Gate(port)
        yield gate, {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{gate.port}", "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
    finally:
        process.kill()
        process.wait()


def bucket_away(ground: Ground, stage: str, gate: Gate, access: dict[str, str], seed: int) -> Outcome:
    """The store is a bucket, and its server goes for some seconds while the stage works."""
    fault, kind = "the store's S3 goes and comes back", ground.kind_of[stage]
    draw = random.Random(seed)
    with ground.trial(stage) as trial:
        import boto3
        import s3fs

        client = boto3.client("s3", endpoint_url=access["AWS_ENDPOINT_URL"], aws_access_key_id="testing",
                              aws_secret_access_key="testing", region_name="us-east-1")  # fmt: skip
        name = f"faults-{trial.mark}"
        client.create_bucket(Bucket=name)
        for file in trial.store.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), name, str(file.relative_to(trial.store)))
        url = f"s3://{name}"
        trial.extra = {**access, "FLYWHEEL_STORE": url, "FLYWHEEL_SCRATCH": str(trial.folder / "scratch")}
        process = trial.start()
        time.sleep(2 + draw.random() * (ground.seconds_of[stage] + 1))
        over = process.poll() is not None
        gate.shut()
        time.sleep(0.5 + 3 * draw.random())
        gate.open()
        code = trial.end(process)
        told = code and "Traceback" not in trial.said and "flywheel: " in trial.said
        if told:
            if orphans := trial.orphans():
                return Outcome(fault, kind, "orphan", "; ".join(orphans))
            code = trial.command()
        if "Traceback (most recent call last)" in trial.said:
            return Outcome(fault, kind, "traceback", trial.said[-1500:])
        if code:
            return Outcome(fault, kind, "wrong", f"exit code {code}: {trial.said[-800:]}")
        os.environ.update(access)
        s3fs.S3FileSystem.clear_instance_cache()  # those of another server
        found = Store(url).get(ground.folder_of[stage])
        if found is None or found.verify() or found.digest != ground.digest_of[stage]:
            return Outcome(fault, kind, "wrong", "another digest")
        return Outcome(fault, kind, "unhurt" if over else "told" if told else "same")
