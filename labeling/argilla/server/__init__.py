"""The real Argilla server with its web UI on this machine: no Docker, no Elasticsearch, loopback only."""

from labeling.argilla.server.backup import backup, restore
from labeling.argilla.server.local import LocalServer, default_home, down, status, up

__all__ = ["LocalServer", "backup", "default_home", "down", "restore", "status", "up"]
