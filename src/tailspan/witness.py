"""The door that log lines come in by: from whoever reads a log to the ledger, and what became of each."""

from collections.abc import Callable
from datetime import datetime, timedelta

import anyio.to_thread
from starlette.requests import Request

from tailspan.delivery import ADDRESS, MAX_BYTES, Answer, Place, parse
from tailspan.inbox import body_of
from tailspan.ingest.lines import Lines
from tailspan.query import nanoseconds
from tailspan.store import Store


class Witness:
    """Takes lines for one store, which keeps them for `days`."""

    def __init__(self, store: Store, clock: Callable[[], datetime], days: int) -> None:
        self._store = store
        self._clock = clock
        self._days = days
        self.keeps_places = store.keeps_places

    async def receive(self, request: Request) -> Answer:
        """Raises DeliveryError, BusyError."""
        body = await body_of(request, MAX_BYTES)
        return await anyio.to_thread.run_sync(self.deliver, body)

    def deliver(self, body: bytes) -> Answer:
        """It is on disk when this returns. Raises likewise."""
        lines, head = parse(body)
        return self.keep(lines, head.place, dry_run=head.dry_run)

    def keep(self, lines: Lines, place: Place | None = None, *, dry_run: bool = False) -> Answer:
        """Likewise, of lines read here. The place is not kept where some were too old: another run may take them."""
        oldest_ns = nanoseconds(self._clock() - timedelta(days=self._days))
        fates = self._store.add_lines(lines, oldest_ns, dry_run=dry_run)
        if place and not dry_run and not fates.too_old:
            self._store.read(place.file, place.read_to, place.before, place.service)
        held = {device.address for device in self._store.history()}
        addresses = {about[ADDRESS] for about in lines.abouts.values()}
        return Answer(**fates._asdict(), unresolved=sorted(str(one) for one in addresses - held if one))

    def place(self, file: str) -> Place:
        """How far the file of that first line was read; 0 where it was not."""
        read_to, before, service = self._store.place(file)
        return Place(file=file, read_to=read_to, before=before, service=service)
