"""Network namespaces: nodes of a tailnet that only these tests see, without an uplink."""

import ctypes
import os
import subprocess
import sys
from typing import Final, Self

import pytest

from tests.stack.engines import REQUIRED

NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET of sched.h
HUB: Final = "10.77.0.1"
LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Network:
    """An empty one, but for its loopback. `with network:` puts this thread inside, and all that it starts there.

    Skips the test where nobody may make one, unless engines are required. It ends with its last process.
    """

    def __init__(self) -> None:
        if sys.platform != "linux":
            pytest.skip("network namespaces are Linux's")
        self._homes: list[int] = []
        home = _here()
        if LIBC.unshare(NEW_NETWORK):
            os.close(home)
            reason = "no network namespaces here: be root, or run unshare --map-root-user --net --mount scripts/test"
            (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)
        self.inside = _here()
        _enter(home)
        os.close(home)
        with self:
            ip("link set lo up")

    def __enter__(self) -> Self:
        self._homes.append(_here())
        _enter(self.inside)
        return self

    def __exit__(self, *_: object) -> None:
        home = self._homes.pop()
        _enter(home)
        os.close(home)

    def close(self) -> None:
        os.close(self.inside)


class Hub(Network):
    """With a bridge at 10.77.0.1, which other networks are plugged into."""

    def __init__(self) -> None:
        super().__init__()
        self._plugged: list[Network] = []
        with self:
            ip("link add bridge type bridge")
            ip(f"addr add {HUB}/24 dev bridge")
            ip("link set bridge up")
        self.plug(Network())  # a bridge is up where something is plugged in, and tailscaled wants an address that is up

    def plug(self, network: Network) -> Network:
        """Gives it an address of its own: 10.77.0.2 and so on."""
        self._plugged.append(network)
        number = len(self._plugged)
        end = f"plug{number}"
        with self:
            ip(f"link add {end} type veth peer name eth0 netns /proc/self/fd/{network.inside}", network.inside)
            ip(f"link set {end} master bridge up")
        with network:
            ip(f"addr add 10.77.0.{number + 1}/24 dev eth0")
            ip("link set eth0 up")
        return network

    def close(self) -> None:
        for network in self._plugged:
            network.close()
        super().close()


def ip(command: str, *files: int) -> None:
    subprocess.run(["ip", *command.split()], check=True, pass_fds=files)


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(network: int) -> None:
    if LIBC.setns(network, NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")
