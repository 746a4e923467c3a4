"""The server reads its proxy's log by itself: what there is, what comes, and whatever rotates it."""

import gzip
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tailspan.errors import BusyError
from tailspan.follow import Follower
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Lines
from tailspan.ingest.nginx import chosen
from tailspan.store.duckdb import DuckDB
from tailspan.witness import Witness
from tests.conftest import Launch
from tests.server.conftest import Serving
from tests.server.logs import combined, identified
from tests.server.spans import ANA, NOW, NOW_NS, export, span

CLIENT: Final = httpx.Client(trust_env=False, timeout=60)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DuckDB]:
    opened = DuckDB(tmp_path / "t.duckdb")
    yield opened
    opened.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs" / "access.log"


def following(store: DuckDB, log: Path) -> Follower:
    witness = Witness(store, lambda: NOW, 400)
    return Follower((f"{log}*",), witness, lambda: NOW_NS, chosen(None), Origin("dashboard"))


def write(log: Path, numbers: range, line: Callable[[str], str] = combined) -> None:
    with log.open("a") as file:
        file.write("".join(line(f"GET /{number} HTTP/1.1") for number in numbers))


def rename(log: Path) -> None:
    """logrotate's own way: nginx opens a new file afterwards."""
    _shift(log)
    log.rename(f"{log}.1")


def copytruncate(log: Path) -> None:
    _shift(log)
    shutil.copy(log, f"{log}.1")
    os.truncate(log, 0)


def _shift(log: Path) -> None:
    """Packs what was rotated before."""
    older = Path(f"{log}.1")
    if older.exists():
        number = sum(1 for _ in log.parent.glob("*.gz")) + 2
        Path(f"{log}.{number}.gz").write_bytes(gzip.compress(older.read_bytes()))
        older.unlink()


@pytest.mark.parametrize("rotate", [rename, copytruncate])
def test_every_line_is_one_request_through_rotations(store: DuckDB, log: Path, rotate: Callable[[Path], None]) -> None:
    follower = following(store, log)
    total = 0
    for turn in range(6):
        for part in range(3):
            write(log, range(total, total + 10))
            total += 10
            if (turn + part) % 2:  # at times it is rotated before all is read
                follower.step()
        rotate(log)
        if turn % 3 == 2:
            follower = following(store, log)  # the server was started again
        follower.step()
    while follower.step():
        pass
    assert (store.count(), follower.state.state) == (total, "ok")
    fresh = following(store, log)
    fresh.step()
    assert store.count() == total


def test_without_its_checkpoints_it_reads_all_again_and_adds_nothing(store: DuckDB, log: Path) -> None:
    write(log, range(20))
    following(store, log).step()
    read_anew(store, log)
    assert store.count() == 20


def test_a_line_that_is_being_written_is_read_when_it_is_whole(store: DuckDB, log: Path) -> None:
    follower = following(store, log)
    write(log, range(1))
    line = combined("GET /torn HTTP/1.1")
    with log.open("a") as file:
        file.write(line[:50])
        file.flush()
        follower.step()
        assert store.count() == 1
        file.write(line[50:])
    follower.step()
    assert store.count() == 2


def test_equal_lines_of_a_second_are_told_apart_wherever_it_stopped(store: DuckDB, log: Path) -> None:
    for _ in range(5):
        with log.open("a") as file:
            file.write(combined())
        following(store, log).step()  # each time the server was started again
    assert store.count() == 5


@pytest.mark.parametrize("grown_between", [True, False])
def test_what_took_the_place_of_as_many_bytes_is_read_too_where_the_youngest_is_held(
    store: DuckDB, log: Path, monkeypatch: pytest.MonkeyPatch, *, grown_between: bool
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("tailspan.follow.time.monotonic", lambda: now_s[0])
    witness = Witness(store, lambda: NOW, 400)
    follower = Follower((f"{log}*",), witness, lambda: NOW_NS, chosen(None), Origin("dashboard"), hold_s=2)

    def later() -> int:
        follower.step()
        now_s[0] += 3
        follower.step()
        return store.count()

    write(log, range(10, 20))
    assert (follower.step(), store.count(), later()) == (False, 0, 10)
    os.truncate(log, 0)
    if grown_between:
        write(log, range(20, 25))
        assert later() == 15
    write(log, range(25 if grown_between else 20, 30))
    assert later() == 20


def test_where_the_store_keeps_no_place_each_file_is_read_once_and_from_its_beginning_after_ever_longer_whiles(
    store: DuckDB, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So InfluxDB does, which may lose something at any time."""
    now_s, delivered = [0.0], []
    real = Witness.keep

    def keep(witness: Witness, lines: Lines, place: Any = None) -> Any:
        delivered.append(lines.total)
        return real(witness, lines, place)

    monkeypatch.setattr("tailspan.follow.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("tailspan.logfiles.PIECE", 2000)
    monkeypatch.setattr(store, "place", lambda file: (0, ""))
    monkeypatch.setattr(Witness, "keep", keep)
    follower = following(store, log)

    def read_now() -> tuple[int, int]:
        """Lines that were delivered, and all that are there."""
        delivered.clear()
        while follower.step():
            assert len(delivered) < 100
        return sum(delivered), store.count()

    write(log, range(100))
    assert (read_now(), len(delivered) > 5) == ((100, 100), True)
    write(log, range(100, 101))
    assert read_now() == (1, 101)
    now_s[0] += 601
    write(log, range(101, 102))
    assert read_now() == (102, 102)
    write(log, range(102, 103))
    assert read_now() == (1, 103)
    rename(log)
    write(log, range(103, 106))
    assert read_now() == (3, 106)
    for waited_s, delivered_lines in ((599, 0), (1, 106), (599, 0), (601, 106), (1199, 0), (1201, 106)):
        now_s[0] += waited_s
        if delivered_lines:
            with store._write() as cursor:
                cursor.execute("DELETE FROM request")
        assert read_now() == (delivered_lines, 106)
        assert follower.state.state == "ok"


def test_what_is_in_the_way_is_told_with_what_mends_it(store: DuckDB, log: Path) -> None:
    follower = following(store, log)
    follower.step()
    assert follower.state == ("unreadable", f"No file is called {log}*. Look for it: ls -l {log.parent}")
    log.mkdir()
    follower.step()
    assert (follower.state.state, "Is a directory" in follower.state.message) == ("unreadable", True)
    log.rmdir()
    log.write_text("what is this?\n")
    follower.step()
    assert "is in none of these formats" in follower.state.message
    log.write_text(combined() + "torn by a crash\n")
    follower.step()
    dropped = f"{log}* is read. 1 lines dropped: not in the format, as in: torn by a crash."
    assert (follower.state, store.count()) == (("ok", dropped), 1)


def test_what_the_store_did_not_take_is_read_again(store: DuckDB, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise BusyError("The disk is full.")

    follower = following(store, log)
    write(log, range(5))
    follower.step()
    write(log, range(5, 10))
    with monkeypatch.context() as broken:
        broken.setattr(store, "add_lines", full)
        assert not follower.step()
        assert follower.state == ("unreadable", "The disk is full.")
    while follower.step():
        pass
    assert (follower.state.state, store.count()) == ("ok", 10)
    read_anew(store, log)
    assert store.count() == 10


def read_anew(store: DuckDB, log: Path) -> None:
    """From the beginning of each file, by somebody who knows nothing."""
    with store._write() as cursor:
        cursor.execute("DELETE FROM checkpoint")
    follower = following(store, log)
    while follower.step():
        pass


def test_equal_lines_on_both_sides_of_a_rotation_that_came_while_it_looked_are_told_apart(
    store: DuckDB, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = following(store, log)
    log.write_text(combined() * 2)
    follower.step()
    with log.open("a") as file:
        file.write(combined() * 2)
    real = Follower._is_read

    def rotated_just_now(*of: Any) -> bool:
        monkeypatch.undo()
        copytruncate(log)
        return real(*of)

    monkeypatch.setattr(Follower, "_is_read", rotated_just_now)
    while follower.step():
        pass
    while follower.step():
        pass
    assert store.count() == 4


def test_a_packed_file_that_is_cut_off_is_told_and_the_others_are_read(store: DuckDB, log: Path) -> None:
    write(log, range(100))
    packed = gzip.compress(b"".join(combined(f"GET /{n} HTTP/1.1").encode() for n in range(5000, 9000)))
    Path(f"{log}.2.gz").write_bytes(packed[: len(packed) // 2])
    follower = following(store, log)
    while follower.step():
        pass
    assert (follower.state.state, store.count() >= 100) == ("unreadable", True)
    assert "cannot be unpacked" in follower.state.message
    Path(f"{log}.2.gz").write_bytes(packed)
    while follower.step():
        pass
    assert (follower.state.state, store.count()) == ("ok", 4100)


def test_a_server_reads_its_log_while_it_answers(launch: Launch, tmp_path: Path, log: Path) -> None:
    log.write_text(identified(1, at=NOW + (_now() - NOW) - timedelta(minutes=1)))
    settings = {
        "TAILSPAN_DB": str(tmp_path / "t.duckdb"),
        "TAILSPAN_LISTEN": "127.0.0.1:0",
        "TS_SOCKET": "/nowhere",
        "TAILSPAN_NGINX_LOG": f"{log}*",
        "TAILSPAN_NGINX_SERVICE": "dashboard",
    }
    server = launch("tailspan", "serve", **settings)
    url = server.line().split()[3]
    assert _until_there(url, 1)["log"] == "ok"
    message = span(9, ANA | {"tailspan.traffic": "api"})
    started = str(time.time_ns() - 10**9)
    CLIENT.post(f"{url}/v1/traces", json=export(message | {"startTimeUnixNano": started, "endTimeUnixNano": started}))
    with log.open("a") as file:
        file.write(identified(2, at=_now(), content_type="text/html", request="GET /boards HTTP/2.0"))
    _until_there(url, 3)
    [person] = CLIENT.get(f"{url}/analytics/active").json()["active_users"]
    found = (person["email"], person["device"], person["current_page"])
    assert found == ("ana@example.com", "ana-laptop", "/boards")
    assert server.end()[0] == 0


def test_a_defect_while_reading_is_told_and_the_server_reads_on(
    serving: Serving, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter([True])
    real = Follower.step

    def step(follower: Follower) -> bool:
        if next(steps, False):
            raise RuntimeError("a defect")
        return real(follower)

    monkeypatch.setattr(Follower, "step", step)
    write(log, range(3))
    with serving(nginx_log=(f"{log}*",), nginx_service="dashboard") as client:
        told = [source["message"] for source in client.get("/analytics/active").json()["sources"]]
        assert "RuntimeError: a defect" in told
        deadline = time.monotonic() + 120
        while len(client.get("/analytics/access-logs?hours=24").json()["logs"]) != 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _now() -> Any:
    return NOW + timedelta(microseconds=(time.time_ns() - NOW_NS) // 1000)


def _until_there(url: str, count: int) -> dict[str, str]:
    """The states of the sources, once so many requests of the service are there."""
    while True:
        answer = CLIENT.get(f"{url}/analytics/access-logs", params={"service": "dashboard"}).json()
        if len(answer["logs"]) >= count:
            return {source["name"]: source["state"] for source in answer["sources"]}
        time.sleep(0.05)
