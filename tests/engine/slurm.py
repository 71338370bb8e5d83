"""The form that Slurm starts a Ray cluster in, on this machine: the real script, with stand-ins for Slurm's own commands."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from tests.engine.running import until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "cluster" / "slurm.sh"

# srun leaves its own options away, and gives each node what two on one machine must not share.
SRUN = """\
#!/bin/bash
while [[ $1 == --* ]]; do shift; done
[[ $* != *--head* ]] || set -- "$@" --ray-client-server-port="$CLIENT_PORT"
node=$(mktemp -d "$FAKE/node.XXXX")
exec "$@" --num-cpus=1 --object-store-memory=80000000 --temp-dir="$node" --dashboard-agent-listen-port=0
"""
SCONTROL = "#!/bin/bash\nfor node in $SLURM_JOB_NODELIST; do echo $node; done\n"
FLYWHEEL = """\
#!/bin/bash
echo "$@" > "$FAKE/called.partial"; mv "$FAKE/called.partial" "$FAKE/called"
until [[ -e $FAKE/over ]]; do sleep .2; done
"""


@dataclass(frozen=True)
class RayCluster:
    """
    Attributes:
        address: as nodes know it.
        jobs: where jobs are submitted.
        called: what the script has `flywheel` do.
    """

    address: str
    jobs: str
    called: str


@contextlib.contextmanager
def ray_cluster(nodes: int = 2, **environment: str) -> Generator[RayCluster]:
    """A cluster of nodes with one core each. `flywheel` stands still in it until the block ends, and is then done."""
    folder = Path(tempfile.mkdtemp(prefix="fw", dir="/tmp"))  # sockets lie in it, whose names must be short
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("flywheel", FLYWHEEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ports, host = _free_ports(3), ray.util.get_node_ip_address()  # Ray does not take 127.0.0.1 for this machine
    env = {
        **os.environ, **environment, **token, "FAKE": str(folder), "PATH": f"{folder}:{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": " ".join([host] * nodes), "RAY_PORT": str(ports[0]), "RAY_DASHBOARD_PORT": str(ports[1]),
        "CLIENT_PORT": str(ports[2]),
    }  # fmt: skip
    with (folder / "log").open("w") as log:
        script = subprocess.Popen(
            [SCRIPT, "recipe.yaml"], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: (folder / "called").exists() or script.poll() is not None, 300)
        assert script.poll() is None, (folder / "log").read_text()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in token.items():
                patch.setenv(name, value)
            _read_environment()
            yield RayCluster(
                f"{host}:{ports[0]}", f"http://127.0.0.1:{ports[1]}", (folder / "called").read_text().strip()
            )
    finally:
        (folder / "over").touch()
        _read_environment()
        try:
            code = script.wait(120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(script.pid, 9)
        assert code == 0, (folder / "log").read_text()[-3000:]
        shutil.rmtree(folder, ignore_errors=True)


def _read_environment() -> None:
    """Ray does when it is imported, and tests before this one may have done so."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
