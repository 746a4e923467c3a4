"""The page's own files under /analytics/: scripts, style sheet and page, each with the ETag of its content.

They hold no data, so that whoever reaches the server gets them; what they ask for is guarded.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

CHECKOUT: Final = Path(__file__).parents[2] / "static"
PACKAGED: Final = Path(__file__).with_name("static")  # in the wheel
INDEX: Final = "index.html"
TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
POLICY: Final = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'self'",
}
HEADERS: Final = {
    "Content-Security-Policy": "; ".join(f"{what} {where}" for what, where in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for again: an update is there with the next visit
}


class File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


class Files:
    """Those of a folder, read once. By default the package's, or the checkout's where it runs from one."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or (PACKAGED if PACKAGED.is_dir() else CHECKOUT)
        self._files: Mapping[str, File] = {
            path.relative_to(folder).as_posix(): _read(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in TYPES
        }

    async def index(self, request: Request) -> Response:
        return self._answer(INDEX, request)

    async def one(self, request: Request) -> Response:
        """Raises HTTPException (404)."""
        return self._answer(request.path_params["path"], request)

    def _answer(self, path: str, request: Request) -> Response:
        file = self._files.get(path)
        if file is None:
            raise HTTPException(404)
        headers = {**HEADERS, "ETag": file.etag}
        if file.etag in request.headers.get("if-none-match", "").replace("W/", "").replace(" ", "").split(","):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)


def _read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, TYPES[path.suffix], f'"{sha256(content).hexdigest()[:32]}"')
