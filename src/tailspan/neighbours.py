"""Whether a tailscaled shares this machine's network, also one whose socket is out of our sight.

In userspace mode it takes tailnet peers to loopback ports, which belong to a network and not to a file system: in a
sidecar's network (`network_mode: service:tailscale`) it does so without a socket here that would tell.
"""

import os
from pathlib import Path
from typing import Final

SOCKETS: Final = Path("/proc/net/unix")  # all of this network, by the paths they have where they were made: unix(7)
CONTAINERS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))


def has_tailscaled(ours: Path) -> bool:
    """By the name of its socket: tailscaled's own, or that of `ours`. Unreadable counts as yes in a container."""
    try:
        sockets = SOCKETS.read_bytes()
    except OSError:
        return any(mark.exists() for mark in CONTAINERS)
    names = (b"tailscaled", os.fsencode(ours.name))
    return any(path.rpartition(b"/")[2].startswith(names) for path in _paths(sockets))


def _paths(sockets: bytes) -> list[bytes]:
    """The eighth column, which only sockets with a name have."""
    return [columns[7] for line in sockets.splitlines() if len(columns := line.split(maxsplit=7)) == 8]
