"""A monitor that greets as QEMU does and then answers as a test wants."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}
Answer = Callable[[str, dict[str, Any], str], bytes | None]
"""(command, its arguments, its id) -> what is sent; None closes the connection."""


def reply(value: object, command_id: str) -> bytes:
    return json.dumps({"return": value, "id": command_id}).encode() + b"\n"


def _messages(client: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON after JSON: the client ends its messages with nothing."""
    text, decoder = "", json.JSONDecoder()
    while received := client.recv(65536):
        text += received.decode()
        while text := text.lstrip():
            try:
                message, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:]
            yield message


class FakeMonitor:
    """One client at a time. `greeting` and `answer` may be set anew between two connections."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.answer = answer
        self.greeting: bytes | None = json.dumps(GREETING).encode() + b"\n"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def end(self) -> None:
        for connection in (self._listener, self._client):
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                self._client, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), self._client:
                self._talk(self._client)

    def _talk(self, client: socket.socket) -> None:
        if self.greeting is None:
            return
        client.sendall(self.greeting)
        for message in _messages(client):
            command, command_id = message["execute"], message.get("id", "")
            if command == "qmp_capabilities":
                client.sendall(reply({}, command_id) if "id" in message else b'{"return": {}}\n')
                continue
            said = self.answer(command, message.get("arguments", {}), command_id)
            if said is None:
                return
            client.sendall(said)
