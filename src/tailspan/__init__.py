"""tailspan: who uses your tailnet services, from which device, doing what, and how fast."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`tailspan.router`, imported when it is asked for: the commands do without the server's libraries."""
    if name == "router":
        from tailspan.app import router

        return router
    raise AttributeError(f"module 'tailspan' has no attribute {name!r}")
