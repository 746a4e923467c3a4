"""The tailscaled of this machine, by the status of its LocalAPI: read by anybody who can open the socket."""

import socket
from pathlib import Path
from typing import Final

import httpx

from tailspan.errors import TailnetError
from tailspan.tailnet import TIMEOUT_S, Look, answered
from tailspan.tailnet.status import read

EVERY_S: Final = 10.0
URL: Final = "http://local-tailscaled.sock/localapi/v0/status"  # it answers to no other Host


class Local:
    name = "local"
    every_s = EVERY_S

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.place = f"tailscaled at {socket}"

    @property
    def is_there(self) -> bool:
        return self.socket.exists()

    def look(self) -> Look:
        try:
            with socket.socket(socket.AF_UNIX) as probe:  # httpx leaves a failed connect to the garbage collector
                probe.settimeout(TIMEOUT_S)
                probe.connect(str(self.socket))
        except OSError as problem:
            fix = "Start tailscaled; in a container, mount its socket, or set TS_SOCKET."
            raise TailnetError("unreachable", f"No {self.place}: {problem.strerror}.", fix=fix) from problem
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=False)  # no TLS, so no certificates to load
        with httpx.Client(transport=transport, timeout=TIMEOUT_S) as client:
            return read(answered(client.stream("GET", URL), self.place, {}), self.place)
