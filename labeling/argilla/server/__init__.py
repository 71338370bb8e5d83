"""The real Argilla server with its web UI on this machine: no Docker, no Elasticsearch, loopback only."""

from labeling.argilla.server.backup import backup, restore
from labeling.argilla.server.local import Server, default_home, down, status, up

__all__ = ["Server", "backup", "default_home", "down", "restore", "status", "up"]
