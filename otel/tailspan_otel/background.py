"""Work that is done beside the service: now and then, in a daemon thread of each process."""

import logging
import os
import threading
from collections.abc import Callable
from typing import Final

LEAST_S: Final = 1.0

log = logging.getLogger("tailspan")


class Background:
    """Does `work` when started, every `every_s` seconds after that, and when woken, but never twice in a second."""

    def __init__(self, name: str, every_s: float, work: Callable[[], None]) -> None:
        self._name = name
        self._every_s = every_s
        self._work = work
        self._forked()
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"tailspan-{self._name}", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def _run(self) -> None:
        woken, pause = self._woken, threading.Event()
        while True:
            try:
                self._work()
            except Exception:  # the next time may go better, and without this thread there is none
                log.exception("tailspan's %s failed", self._name)
            pause.wait(LEAST_S)
            woken.wait(self._every_s - LEAST_S)
            woken.clear()
