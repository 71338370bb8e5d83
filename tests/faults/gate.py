"""A port in front of a server that can be shut and opened again."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Gate:
    """A port that leads to another one, as long as it is open. Shutting it breaks what is under way."""

    def __init__(self, port: int, at: int = 0) -> None:
        """
        Args:
            port: it leads to. at: its own; any that is free if 0.
        """
        self.target = port
        self.listening = socket.create_server(("127.0.0.1", at), backlog=512)
        self.port = self.listening.getsockname()[1]
        self.is_open = True
        self.joined: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        self.is_open = False
        for one in list(self.joined):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        self.is_open = True

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listening.accept()
            except OSError:
                return
            if not self.is_open:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            self.joined |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self.joined.discard(end)
