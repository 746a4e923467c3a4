"""The template of the route that answered, read from the scope after the call (never by matching again)."""

from tailspan_otel.asgi import Scope


def template(scope: Scope, root_path: str) -> str | None:
    """`/rooms/{room}` with the prefixes of included routers and mounts, or None where nothing matched.

    `root_path` is the scope's own before the call: what was added to it since are the mounts on the way.
    FastAPI keeps the prefixes of included routers in its effective route context, not in `scope["route"].path`.
    """
    route = scope.get("route")
    if not hasattr(route, "endpoint"):  # nothing matched, or a mount whose app has no route for it
        return None
    context = (scope.get("fastapi") or {}).get("effective_route_context")
    # a router's mount leaves its own context behind, which is not that of the route below it
    path = getattr(context if getattr(context, "original_route", None) is route else route, "path", None)
    if not isinstance(path, str):
        return None
    mounts = str(scope.get("root_path", ""))[len(root_path) :]
    return mounts + path
