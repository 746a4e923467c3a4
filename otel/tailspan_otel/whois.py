"""Who has a tailnet address: asked of tailscaled, remembered, and never on the request's time."""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Final, NamedTuple

from tailspan_otel.localapi import LateAnswer, LocalAPI, NoAnswer
from tailspan_otel.node import Node

FRESH_S: Final = 25.0  # then asked again, while the old answer is still used
STALE_S: Final = 50.0  # then forgotten: a rename or a new tag is followed within a minute
NOBODY_S: Final = 5.0  # "no such node" is believed this long: the next may be joining now
DOUBTED_S: Final = 1.0  # an answer that a request's headers contradict is asked for again where it is older
AWAY_S: Final = 2.0  # a tailscaled that is not there is left alone this long
MISSED_S: Final = 1.0  # so is its lock, which it held for 180 ms to find no connection
WAIT_S: Final = 0.25  # the longest a finished request's span waits for a name
PATIENCE_S: Final = 0.5  # the longest that the spans of one second wait for names, all together
MODE_S: Final = 5.0  # how tailscaled runs is asked again this often: it may start later, or anew and otherwise
MAX_ADDRESSES: Final = 10_000
MAX_CONNECTIONS: Final = 1_000
MAX_WAITING: Final = 1_000

log = logging.getLogger("tailspan")


class _Answer(NamedTuple):
    at: float
    fresh_until: float
    known_until: float
    node: Node | None


_NONE = _Answer(0.0, 0.0, 0.0, None)


class Connection:
    """The connection of one request: did it come straight from the tailnet, through tailscaled's own network stack?"""

    __slots__ = ("answered", "client", "node")

    def __init__(self, client: tuple[str, int]) -> None:
        self.client = client  # its other end, as the server has it
        self.answered = False
        self.node: Node | None = None  # whose it is; None for one that Serve or a process of this machine opened


class Whois:
    """tailscaled's answers, kept for under a minute. One daemon thread asks; the request's path only looks.

    `userspace` says whether tailscaled runs without a TUN device (`TUN: false` in its status); unreadable counts as TUN
    unless the owner said otherwise, or it was readable before. `own` are the addresses of this machine. `answered`:
    tailscaled said so once.
    """

    own: frozenset[str] = frozenset()
    answered = False

    def __init__(self, socket: str, *, userspace: bool | None = None) -> None:
        self.userspace = bool(userspace)
        self._said = userspace
        self._tailscaled = LocalAPI(socket)
        self._known: OrderedDict[str, _Answer] = OrderedDict()
        self._away_until = 0.0
        self._missed = float("-inf")  # when a connection was last looked for in vain
        self._in_vain: OrderedDict[int, tuple[str, int]] = OrderedDict()  # port → the connection, as below
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._questions: Queue[str | Connection] = Queue(MAX_WAITING)
        self._asked: set[str] = set()
        self._news = threading.Condition()
        self._patience = _Patience()
        self._mode_due = 0.0
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
        if now > answer.fresh_until and now >= self._away_until and address not in self._asked:
            self._ask(address)
        known = now < answer.known_until
        return known, answer.node if known else None

    def wait(self, address: str, seconds: float) -> Node | None:
        """Who has the address, as far as it is known within `seconds`. Not for the request's path."""
        known, node = self.peek(address)
        if known or address not in self._asked:
            return node
        self._wait(lambda: address not in self._asked, seconds)
        return self.peek(address)[1]

    def again(self, address: str, seconds: float) -> tuple[bool, Node | None]:
        """(whether tailscaled said so within the last second, who), asked anew where it has not; waits as `wait`."""
        since = time.monotonic() - DOUBTED_S
        if self._known.get(address, _NONE).at < since:
            if address not in self._asked:
                self._ask(address)
            self._wait(lambda: address not in self._asked, seconds)
        answer = self._known.get(address, _NONE)
        return answer.at >= since, answer.node

    def connection(self, client: tuple[str, int] | None) -> Connection | None:
        """Asks in the background whether that connection came past Serve; None where it cannot have, or is not known.

        Only in userspace mode, which hands a tailnet peer's connection on to any port of 127.0.0.1. A connection that
        was looked for in vain stays Serve's, or a process's of this machine: it is known by its `client`, the same
        object for all its requests in uvicorn. Where a server makes a new one each time, it is looked for each time.
        """
        if client is None or not self.userspace or not client[1] or client[0] not in ("127.0.0.1", "::ffff:127.0.0.1"):
            return None
        if self._in_vain.get(client[1]) is client or time.monotonic() < self._missed + MISSED_S:
            return None
        asked = Connection(client)
        return asked if self._put(asked) else None

    def settled(self, connection: Connection, seconds: float) -> Node | None:
        """Whose connection it is, as far as it is known within `seconds`. Not for the request's path."""
        self._wait(lambda: connection.answered, seconds)
        return connection.node

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        """Until it is done, or time is up. Sending goes on without a name where the second's patience is at its end."""
        if seconds <= 0 or done():
            return
        with self._news:
            began = time.monotonic()
            self._news.wait_for(done, min(seconds, self._patience.left(began)))
            self._patience.spend(time.monotonic() - began)

    def _ask(self, address: str) -> None:
        self._asked.add(address)
        if not self._put(address):
            self._asked.discard(address)

    def _put(self, question: str | Connection) -> bool:
        if time.monotonic() < self._away_until:
            return False
        self.start()
        with suppress(Full):
            self._questions.put_nowait(question)
            return True
        return False

    def _run(self) -> None:
        questions, tailscaled = self._questions, self._tailscaled
        while True:
            try:
                question = questions.get(timeout=max(0.0, self._mode_due - time.monotonic()))
            except Empty:
                question = None
            if time.monotonic() >= self._mode_due:
                self.ask_mode()
            if question is None:
                continue
            if time.monotonic() >= self._away_until:
                self._answer(tailscaled, question)
            with self._news:
                if isinstance(question, Connection):
                    question.answered = True
                else:
                    self._asked.discard(question)
                self._news.notify_all()

    def ask_mode(self) -> None:
        """Reads now how tailscaled runs, which takes a second at most. The thread does so every 5 seconds."""
        with suppress(NoAnswer):
            mode = self._tailscaled.mode()
            self.own, self.answered = mode.own, True
            self.userspace = mode.userspace if self._said is None else self._said
        self._mode_due = time.monotonic() + MODE_S

    def _answer(self, tailscaled: LocalAPI, question: str | Connection) -> None:
        try:
            if isinstance(question, str):
                self._keep(question, tailscaled.whois(question))
            elif time.monotonic() >= self._missed + MISSED_S:
                question.node = tailscaled.whois(f"127.0.0.1:{question.client[1]}")
                if question.node is None:
                    self._keep_in_vain(question.client)
        except LateAnswer as problem:  # the next may be in time: who waits has a limit anyway
            log.debug("%s", problem)
        except NoAnswer as problem:
            self._away_until = self._mode_due = time.monotonic() + AWAY_S
            log.debug("%s", problem)

    def _keep_in_vain(self, client: tuple[str, int]) -> None:
        self._missed = time.monotonic()
        self._in_vain[client[1]] = client
        if len(self._in_vain) > MAX_CONNECTIONS:
            self._in_vain.popitem(last=False)

    def _keep(self, address: str, node: Node | None) -> None:
        now = time.monotonic()
        fresh, known = (FRESH_S, STALE_S) if node else (NOBODY_S, NOBODY_S)
        self._known[address] = _Answer(now, now + fresh, now + known, node)
        self._known.move_to_end(address)
        if len(self._known) > MAX_ADDRESSES:
            self._known.popitem(last=False)


class _Patience:
    """Seconds that may still be waited: half of each second that passes, and no more than that at once."""

    def __init__(self) -> None:
        self._left = PATIENCE_S
        self._at = time.monotonic()

    def left(self, now: float) -> float:
        self._left = min(PATIENCE_S, self._left + (now - self._at) * PATIENCE_S)
        self._at = now
        return max(0.0, self._left)

    def spend(self, seconds: float) -> None:
        self._left -= seconds
