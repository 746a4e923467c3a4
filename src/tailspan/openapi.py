"""What services' own OpenAPI documents call their routes: names of features, where the settings have none.

A document is a file, a URL, or of the app that the answers are mounted in. Whatever is wrong with one, its last good
content holds and answers say so. Nobody ever waits for a network.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal

Summaries = Mapping[tuple[str, str, str], str]  # service, method, route → summary

METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
URL: Final = ("http://", "https://")
EVERY_S: Final = 300.0  # how often a URL is read again
AGAIN_S: Final = 15.0  # and how soon after it could not be
TIMEOUT_S: Final = 5.0


class Document:
    """One service's, read again every few minutes. `get` gives the parsed JSON."""

    def __init__(self, service: str, place: str, get: Callable[[], Any]) -> None:
        self.service = service
        self.place = place
        self.state: Literal["ok", "no data yet", "ignored"] = "no data yet"
        self.message = f"{place} is being read."
        self.summaries: Summaries = {}
        self._get = get
        self._next = 0.0

    def refresh(self) -> None:
        """Never raises: `state` and `message` say what is wrong."""
        if self._next <= (now := monotonic()):
            self._next = now + EVERY_S
            self._begin()

    def _begin(self) -> None:
        self._read()

    def _read(self) -> None:
        try:
            self.summaries = dict(_summaries(self.service, self._get()))
            self.state, self.message = "ok", f"{self.place} is read."
        except Exception as problem:  # of anything: a network, a stranger's JSON, a host's own code; answers go on
            self._next = monotonic() + AGAIN_S
            why = str(problem).partition("\n")[0].rstrip(".")
            self.state, self.message = "ignored", f"{self.place} cannot be read: {why}. Its last good content holds."


class FileDocument(Document):
    """Read again when the file changes."""

    def __init__(self, service: str, path: Path) -> None:
        super().__init__(service, str(path), lambda: json.loads(path.read_bytes()))
        self._path = path
        self._stamp: tuple[int, int] | None = None

    def refresh(self) -> None:
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
        except OSError:
            stamp = None  # reading says why
        if stamp is None or stamp != self._stamp:
            self._stamp = stamp
            self._read()


class UrlDocument(Document):
    """Read in the background."""

    def __init__(self, service: str, url: str) -> None:
        super().__init__(service, url, lambda: _from_url(url))

    def _begin(self) -> None:
        threading.Thread(target=self._read, name=f"openapi {self.service}", daemon=True).start()


class Documents:
    """Follows the documents that the settings name, and `own`, unless they name another for its service."""

    def __init__(self) -> None:
        self.own: Document | None = None
        self._named: dict[tuple[str, str], Document] = {}

    def read(self, places: Mapping[str, str], folder: Path) -> Summaries:
        """`places`: service → URL, or path from the folder. The newest good content of all."""
        self._named = {
            (service, place): self._named.get((service, place)) or _document(service, place, folder)
            for service, place in places.items()
        }
        found: dict[tuple[str, str, str], str] = {}
        for document in self:
            document.refresh()
            found |= document.summaries
        return found

    def __iter__(self) -> Iterator[Document]:
        if self.own and self.own.service not in {service for service, _ in self._named}:
            yield self.own
        yield from self._named.values()


def _document(service: str, place: str, folder: Path) -> Document:
    return UrlDocument(service, place) if place.startswith(URL) else FileDocument(service, folder / place)


def _from_url(url: str) -> Any:
    import httpx  # here, since it takes memory in a host's app that has no such setting

    return httpx.get(url, timeout=TIMEOUT_S, trust_env=False).raise_for_status().json()


def _summaries(service: str, document: Any) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Raises ValueError for what is no OpenAPI document or no Unicode. Without a summary an operation gives none."""
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, dict):
        raise ValueError('it is no OpenAPI document: "paths" is missing')
    for route, operations in paths.items():
        for method in METHODS:
            operation = operations.get(method) if isinstance(operations, dict) else None
            summary = operation.get("summary") if isinstance(operation, dict) else None
            if isinstance(summary, str) and summary:
                f"{summary}{route}".encode()  # half a surrogate pair, which JSON allows, would fail each answer
                yield (service, method.upper(), route), summary
