"""Who has a tailnet address: asked of tailscaled, remembered, and never on the request's time."""

import logging
import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Final, NamedTuple

from tailspan_otel.localapi import LocalAPI, NoAnswer, Node

FRESH_S: Final = 25.0  # then asked again, while the old answer is still used
STALE_S: Final = 50.0  # then forgotten: a rename or a new tag is followed within a minute
NOBODY_S: Final = 5.0  # "no such node" is believed this long: the next may be joining now
AWAY_S: Final = 2.0  # a tailscaled that did not answer, or slowly, is left alone this long
SLOW_S: Final = 0.2
WAIT_S: Final = 0.25  # the longest a finished request's span waits for a name
STATUS_S: Final = 60.0
MAX_ADDRESSES: Final = 10_000
MAX_WAITING: Final = 1_000

log = logging.getLogger("tailspan")


class _Answer(NamedTuple):
    fresh_until: float
    known_until: float
    node: Node | None


_NONE = _Answer(0.0, 0.0, None)


class Whois:
    """tailscaled's answers, kept for under a minute. One daemon thread asks; the request's path only looks.

    `userspace` says whether tailscaled runs without a TUN device (`TUN: false` in its status); unreadable counts as TUN
    unless the owner said otherwise.
    """

    def __init__(self, socket: str, *, userspace: bool | None = None) -> None:
        self.userspace = bool(userspace)
        self._said = userspace
        self._tailscaled = LocalAPI(socket)
        self._known: OrderedDict[str, _Answer] = OrderedDict()
        self._away_until = 0.0
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._questions: Queue[str] = Queue(MAX_WAITING)
        self._asked: set[str] = set()
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the asking thread of this process, which first reads tailscaled's mode."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tailspan-whois", daemon=True)
            self._thread.start()

    def peek(self, address: str) -> tuple[bool, Node | None]:
        """(whether it is known who has the address, who); asks in the background where it is not, or not for long."""
        answer = self._known.get(address, _NONE)
        now = time.monotonic()
        if now > answer.fresh_until and address not in self._asked and now >= self._away_until:
            self._ask(address)
        known = now < answer.known_until
        return known, answer.node if known else None

    def wait(self, address: str, seconds: float) -> Node | None:
        """Who has the address, as far as it is known within `seconds`. Not for the request's path."""
        known, node = self.peek(address)
        if known or seconds <= 0 or address not in self._asked:
            return node
        with self._news:
            self._news.wait_for(lambda: address not in self._asked, seconds)
        return self.peek(address)[1]

    def _ask(self, address: str) -> None:
        self.start()
        try:
            self._asked.add(address)
            self._questions.put_nowait(address)
        except Full:
            self._asked.discard(address)

    def _run(self) -> None:
        questions, tailscaled, status_due = self._questions, self._tailscaled, 0.0
        while True:
            if time.monotonic() >= status_due:
                with suppress(NoAnswer):
                    userspace = tailscaled.is_userspace()
                    self.userspace = userspace if self._said is None else self._said
                status_due = time.monotonic() + STATUS_S
            try:
                address = questions.get(timeout=STATUS_S)
            except Empty:
                continue
            if time.monotonic() >= self._away_until:
                self._look_up(tailscaled, address)
            with self._news:
                self._asked.discard(address)
                self._news.notify_all()

    def _look_up(self, tailscaled: LocalAPI, address: str) -> None:
        asked = time.monotonic()
        try:
            node = tailscaled.whois(address)
        except NoAnswer as problem:
            self._away_until = time.monotonic() + AWAY_S
            log.debug("%s", problem)
            return
        now = time.monotonic()
        if now - asked > SLOW_S:  # a crowd of new addresses would hold up the sending, one after the other
            self._away_until = now + AWAY_S
        fresh, known = (FRESH_S, STALE_S) if node else (NOBODY_S, NOBODY_S)
        self._known[address] = _Answer(now + fresh, now + known, node)
        self._known.move_to_end(address)
        if len(self._known) > MAX_ADDRESSES:
            self._known.popitem(last=False)
