"""The server reads its proxy's log by itself: what there is, what comes, and whatever rotates it."""

import gzip
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import pytest

from tailspan.errors import BusyError
from tailspan.follow import Follower
from tailspan.growth import Growth
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Lines
from tailspan.ingest.nginx import chosen
from tailspan.logfiles import look
from tailspan.store.duckdb import DuckDB
from tailspan.witness import Witness
from tests.conftest import Launch
from tests.server.conftest import Serving
from tests.server.logs import combined, counts, identified, read
from tests.server.spans import ANA, NOW, NOW_NS, export, span
from tests.server.tailnet import until

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


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which files were looked at."""
    paths: list[str] = []

    def noted(path: str, *of: Any) -> Any:
        paths.append(path)
        return look(path, *of)

    monkeypatch.setattr("tailspan.follow.look", noted)
    return paths


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lines each delivery to the ledger had."""
    totals: list[int] = []
    real = Witness.keep

    def keep(witness: Witness, lines: Lines, place: Any = None) -> Any:
        totals.append(lines.total)
        return real(witness, lines, place)

    monkeypatch.setattr(Witness, "keep", keep)
    return totals


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


def test_who_polls_through_a_rotation_polls_on(log: Path, serving: Serving) -> None:
    calls = [
        combined("POST /state HTTP/1.1", at=f"01/Mar/2026:11:{n // 3:02}:{n % 3 * 20:02} +0000") for n in range(60)
    ]

    def polls() -> int:
        [row] = client.get("/analytics/query?metrics=requests&traffic=poll&days=1").json()["rows"]
        return int(row["requests"])

    with serving(nginx_log=(f"{log}*",), nginx_service="dashboard") as client:
        log.write_text("".join(calls[:30]))
        until(lambda: polls() == 27)  # the first three calls tell nobody what they are
        rename(log)
        log.write_text("".join(calls[30:]))
        until(lambda: polls() == 57)


def test_a_format_that_changes_in_the_middle_of_a_file_is_followed(store: DuckDB, log: Path) -> None:
    follower = following(store, log)
    write(log, range(20))
    follower.step()
    for number in range(5):
        with log.open("a") as file:
            file.write(identified(number))
        follower.step()
    write(log, range(20, 22))  # and back
    follower.step()
    assert (follower.state, store.count()) == (("ok", f"{log}* is read."), 27)
    read_anew(store, log)
    assert store.count() == 27


def test_what_was_in_the_future_or_too_old_is_taken_once_that_is_mended(
    store: DuckDB, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("tailspan.follow.time.monotonic", lambda: now_s[0])
    witness = Witness(store, lambda: NOW, 1)
    follower = Follower((f"{log}*",), witness, lambda: NOW_NS, chosen(None), Origin("dashboard"))
    log.write_text(combined(at="01/Feb/2026:11:00:00 +0000") + combined())
    follower.step()
    with log.open("a") as file:
        file.write(combined() + combined("GET /early HTTP/1.1", at="01/Mar/2026:12:30:00 +0000"))
    follower.step()
    write(log, range(3))
    assert (follower.step(), store.count()) == (False, 5)
    later = Witness(store, lambda: NOW + timedelta(hours=1), 400)
    for again in (follower, Follower((f"{log}*",), later, lambda: NOW_NS, chosen(None), Origin("dashboard"))):
        again._witness, again._clock_ns = later, lambda: NOW_NS + 3600 * 10**9
        assert (again.step(), store.count()) == (False, 5 if again is follower else 7)
    now_s[0] += 601
    assert (follower.step(), store.count(), follower._wanted) == (False, 7, set())


def test_a_line_that_is_too_old_costs_nothing_but_itself(
    store: DuckDB, log: Path, delivered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that nobody ever rotated: it is not read from its beginning again and again."""
    now_s = [0.0]
    monkeypatch.setattr("tailspan.follow.time.monotonic", lambda: now_s[0])
    follower = Follower((f"{log}*",), Witness(store, lambda: NOW, 1), lambda: NOW_NS, chosen(None), Origin("dashboard"))
    log.write_text(combined(at="01/Feb/2026:11:00:00 +0000"))
    for number in range(5):
        write(log, range(number, number + 1))
        assert follower.step() is False
        now_s[0] += 100_000
    assert (delivered, store.count()) == ([2, 1, 1, 1, 1], 5)


def test_megabytes_without_an_end_of_line_are_passed(store: DuckDB, log: Path) -> None:
    follower = following(store, log)
    write(log, range(2))
    with log.open("ab") as file:
        file.write(b"\0" * 9_000_000)
    follower.step()
    write(log, range(2, 5))
    while follower.step():
        pass
    assert (follower.state.state, store.count()) == ("ok", 4)
    assert "1 lines dropped: no end within a megabyte" in follower.state.message


def test_equal_lines_where_files_meet_are_told(store: DuckDB, log: Path) -> None:
    follower = following(store, log)
    log.write_text(combined(at="01/Mar/2026:10:59:59 +0000"))
    write(log, range(3))
    follower.step()
    rename(log)
    write(log, range(1, 4))
    while follower.step():
        pass
    told = f"{log}* is read. 2 lines equal others where files meet, and are counted as the same requests."
    assert (follower.state, store.count()) == (("ok", told), 5)


def test_without_its_checkpoints_it_reads_all_again_and_adds_nothing(store: DuckDB, log: Path) -> None:
    write(log, range(20))
    following(store, log).step()
    read_anew(store, log)
    assert store.count() == 20


def test_a_file_without_a_line_is_told_and_looked_at_once(store: DuckDB, log: Path, looked: list[str]) -> None:
    """As one of zeros, which a crash left. One that is empty once it is unpacked is no trouble."""
    follower, empty, zeros = following(store, log), Path(f"{log}.2.gz"), Path(f"{log}.1")
    empty.write_bytes(gzip.compress(b""))
    assert (follower.step(), follower.state) == (False, ("ok", f"{log}* is read."))
    log.write_bytes(b"\0" * 3)
    for path in (log, zeros):
        for _ in range(2):
            told = f"{path} has no whole line: it begins with \\x00\\x00\\x00. Where it is no log, move it away."
            assert (follower.step(), follower.state) == (False, ("unreadable", told))
        if path == log:
            log.rename(zeros)
    assert looked == [str(empty), str(log)]
    write(zeros, range(3))  # of which the first is part of what was there
    while follower.step():
        pass
    assert (follower.state.state, store.count()) == ("ok", 2)


def test_a_packed_file_that_is_cut_off_before_its_first_line_ends_is_told_and_looked_at_once(
    store: DuckDB, log: Path, looked: list[str]
) -> None:
    follower, packed = following(store, log), Path(f"{log}.1.gz")
    packed.write_bytes(gzip.compress(b"\0" * 100_000)[:-20])
    for _ in range(3):
        assert not follower.step()
        assert follower.state.state == "unreadable"
        assert f"{packed} cannot be unpacked to its end" in follower.state.message
    assert looked == [str(packed)]
    packed.write_bytes(gzip.compress(combined().encode()))
    while follower.step():
        pass
    assert (follower.state.state, store.count()) == ("ok", 1)


def test_a_file_that_got_another_without_a_line_in_its_place_while_it_looked_is_read(
    store: DuckDB, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rotated_just_now(path: str, *of: Any) -> Any:
        monkeypatch.undo()
        rename(log)
        log.write_text("torn")
        return look(path, *of)

    follower = following(store, log)
    write(log, range(3))
    monkeypatch.setattr("tailspan.follow.look", rotated_just_now)
    for _ in range(9):
        follower.step()
    assert store.count() == 3


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


def test_what_lies_there_is_read_at_once_and_it_is_behind_until_the_store_shows_it_where_the_youngest_is_held(
    store: DuckDB, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("tailspan.follow.time.monotonic", lambda: now_s[0])
    witness = Witness(store, lambda: NOW, 400)
    follower = Follower((f"{log}*",), witness, lambda: NOW_NS, chosen(None), Origin("dashboard"), hold_s=2)
    write(Path(f"{log}.1"), range(10))
    os.utime(f"{log}.1", (time.time() - 60, time.time() - 60))
    seen = []
    for number in (0, 10, 0, 15):
        if number:
            write(log, range(number, number + 5))
        follower.step()
        seen.append((store.count(), follower.state.state))
        now_s[0] += 3
    follower.step()
    assert (seen, store.count(), follower.state.state) == (
        [(10, "behind"), (10, "behind"), (15, "behind"), (15, "ok")],
        20,
        "ok",
    )


def test_where_the_store_keeps_no_place_each_file_is_read_once_and_from_its_beginning_after_ever_longer_whiles(
    store: DuckDB, log: Path, delivered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So InfluxDB does, which may lose something at any time."""
    now_s = [0.0]
    monkeypatch.setattr("tailspan.follow.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("tailspan.logfiles.PIECE", 2000)
    monkeypatch.setattr(store, "place", lambda file: (0, "", None))
    monkeypatch.setattr(DuckDB, "keeps_places", False)
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
    for waited_s, numbers, delivered_lines in ((600, range(103, 104), 1), (2, range(104, 105), 105)):
        now_s[0] += waited_s
        write(log, numbers)
        assert read_now()[0] == delivered_lines
    rename(log)
    write(log, range(105, 106))
    assert read_now() == (1, 106)
    for waited_s, delivered_lines in ((599, 0), (1, 106), (599, 0), (601, 106), (1199, 0), (1201, 106)):
        now_s[0] += waited_s
        if delivered_lines:
            with store._write() as cursor:
                cursor.execute("DELETE FROM request")
        assert read_now() == (delivered_lines, 106)
        assert follower.state.state == "ok"


def test_of_many_rotated_files_none_is_read_again_at_a_rotation_where_the_store_keeps_no_place(
    store: DuckDB, log: Path, delivered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("tailspan.follow.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr(store, "place", lambda file: (0, "", None))
    monkeypatch.setattr(DuckDB, "keeps_places", False)
    follower = following(store, log)

    def read_now() -> int:
        delivered.clear()
        while follower.step():
            pass
        return sum(delivered)

    def rotated() -> None:
        for number in range(20, 0, -1):
            if (older := Path(f"{log}.{number}")).exists():
                older.rename(f"{log}.{number + 1}")
        log.rename(f"{log}.1")

    for number in range(9):
        write(log, range(10 * number, 10 * number + 10))
        if number < 8:
            rotated()
    assert read_now() == 90
    for number in (200, 201):
        rotated()
        write(log, range(number, number + 1))
        assert read_now() == 1
    now_s[0] += 601
    assert read_now() == 92  # as it would be without rotations
    rotated()
    write(log, range(300, 301))
    assert read_now() == 1


def test_a_copy_in_the_making_is_not_read_again(store: DuckDB, log: Path, delivered: list[int]) -> None:
    """As by copytruncate of a large log."""
    follower = following(store, log)
    write(log, range(20))
    while follower.step():
        pass
    delivered.clear()
    content, copy = log.read_bytes(), Path(f"{log}.1")
    for size in (len(content) // 2, len(content) - 10, len(content)):
        copy.write_bytes(content[:size])
        while follower.step():
            pass
    assert (sum(delivered), store.count()) == (0, 20)
    copy.write_bytes(content[: len(content) // 2])  # one that nobody goes on with
    follower.step()
    while follower.step():
        pass
    assert (sum(delivered), store.count()) == (10, 20)


def test_what_was_taken_out_is_read_again_with_the_next_line(store: DuckDB, log: Path) -> None:
    follower = following(store, log)
    write(log, range(5))
    follower.step()
    store.remove_log("dashboard")
    write(log, range(5, 6))
    while follower.step():
        pass
    assert store.count() == 6


def test_the_end_of_the_older_file_is_in_doubt_where_the_newer_one_is_read_before(store: DuckDB, log: Path) -> None:
    """As where what is youngest is held, and the older one is packed meanwhile."""
    follower, equal = following(store, log), combined()
    log.write_text(combined(at="01/Mar/2026:10:59:58 +0000") + equal)
    follower.step()
    older = log.read_text() + 2 * equal
    log.write_text(combined("GET /new HTTP/1.1") + 3 * equal)
    follower.step()
    Path(f"{log}.1").write_text(older)
    while follower.step():
        pass
    told = f"{log}* is read. 3 lines equal others where files meet, and are counted as the same requests."
    assert (follower.state, store.count()) == (("ok", told), 5)  # and may be 8


def test_a_trouble_is_over_with_an_empty_file(store: DuckDB, log: Path) -> None:
    follower = following(store, log)
    log.write_text("what is this?\n")
    follower.step()
    assert follower.state.state == "unreadable"
    os.truncate(log, 0)
    follower.step()
    assert follower.state == ("ok", f"{log}* is read.")


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody who may not look")
def test_a_link_into_a_closed_folder_is_told_and_the_others_are_read(store: DuckDB) -> None:
    with TemporaryDirectory() as folder:  # and not pytest's, which other tests want closed
        Path(folder).chmod(0o755)
        log, closed = Path(folder) / "access.log", Path(folder) / "closed"
        closed.mkdir(0o700)
        (closed / "access.log").write_text(combined())
        Path(f"{log}.1").symlink_to(closed / "access.log")
        write(log, range(2))
        look(str(log), chosen(None), "UTC")  # imports what nobody might not read
        follower = following(store, log)
        os.seteuid(65534)
        try:
            while follower.step():
                pass
        finally:
            os.seteuid(0)
    assert (follower.state.state, store.count()) == ("unreadable", 2)
    assert f"{log}.1 cannot be read: Permission denied." in follower.state.message
    mend = f"sudo setfacl -m u:nobody:rx {closed}; sudo setfacl -m u:nobody:r {closed}/access.log"
    assert mend in follower.state.message


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
    torn = "1 lines dropped: not in the format, as in: torn by a crash."
    unknown = f"The newest 1 lines of {log}* are in no format that is known here: {torn}"
    fix = "Look how nginx writes now, and name that: TAILSPAN_NGINX_FORMAT."
    assert (follower.state, store.count()) == (("dropping", f"{unknown} {fix}"), 1)
    write(log, range(1))
    follower.step()
    assert (follower.state, store.count()) == (("ok", f"{log}* is read. {torn}"), 2)


def test_a_name_that_is_no_utf_8_is_shown(serving: Serving, log: Path) -> None:
    write(log, range(3))
    Path(os.fsdecode(os.fsencode(log) + b".caf\xe9")).write_text("what is this?\n")

    def told() -> str:
        answer = client.get("/analytics/active")
        assert answer.status_code == 200
        return next(str(source["message"]) for source in answer.json()["sources"] if source["name"] == "log")

    with serving(nginx_log=(f"{log}*",), nginx_service="dashboard") as client:
        until(lambda: told().startswith(f"{log}.caf\\xe9 is in none of these formats"))


def test_a_pattern_that_names_no_rotated_file_is_told(store: DuckDB, log: Path) -> None:
    witness = Witness(store, lambda: NOW, 400)
    follower = Follower((str(log),), witness, lambda: NOW_NS, chosen(None), Origin("dashboard"))
    write(log, range(2))
    while follower.step():
        pass
    told = f"What nginx writes just before a rotation is missed where only {log} is looked at."
    assert (follower.state.state, store.count()) == ("ok", 2)
    assert follower.state.message == f"{log} is read. {told} Set TAILSPAN_NGINX_LOG={log}*"


def test_a_link_to_what_is_no_file_or_not_there_is_told(store: DuckDB, log: Path) -> None:
    follower = following(store, log)
    for target, told in (("/dev/null", "which is no file"), ("/nowhere/access.log", "which is not there")):
        log.symlink_to(target)
        assert not follower.step()
        assert follower.state.state == "unreadable"
        assert f"{log} links to {target}, {told}" in follower.state.message
        log.unlink()
    write(log, range(2))
    while follower.step():
        pass
    assert (follower.state.state, store.count()) == ("ok", 2)


def test_where_no_temporary_file_can_be_written_that_is_told_and_lines_are_read_once_it_can(
    serving: Serving, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no room"))
    monkeypatch.setattr("tailspan.sending.PATIENCE_S", 0)
    told = f"Log lines cannot be put into a temporary file in {tmp_path}/no room: No such file or directory. "
    told += f"Make room, or name another folder by TMPDIR: df -h '{tmp_path}/no room'"

    def state() -> str:
        answer = client.get("/analytics/access-logs").json()
        return next(str(source["message"]) for source in answer["sources"] if source["name"] == "log")

    write(log, range(3))
    with serving(nginx_log=(f"{log}*",), nginx_service="dashboard") as client:
        until(lambda: state() == told)
        [problem] = read(client, str(log))["problems"]
        assert f"answered 503: {told}" in problem
        (tmp_path / "no room").mkdir()
        until(lambda: counts(read(client, str(log), since_ns=0)) == {"lines": 3, "known": 3})


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


@pytest.mark.parametrize("rotate", [rename, copytruncate])
def test_a_file_that_took_the_name_of_one_alike_while_it_looked_is_not_taken_for_it(
    store: DuckDB, log: Path, monkeypatch: pytest.MonkeyPatch, rotate: Callable[[Path], None]
) -> None:
    """Both have as many bytes, and the same end."""

    def begun_by(path: str) -> str:
        return combined(f"GET /{path} HTTP/1.1") + combined() * 4

    follower = following(store, log)
    log.write_text(begun_by("a"))
    real = Follower._is_read

    def rotated_just_now(*of: Any) -> bool:
        monkeypatch.undo()
        rotate(log)
        log.write_text(begun_by("b"))
        return real(*of)

    monkeypatch.setattr(Follower, "_is_read", rotated_just_now)
    assert follower.step()
    while follower.step():
        pass
    assert (store.count(), follower.state.state) == (6, "ok")


def test_a_file_whose_name_another_got_before_the_look_is_not_taken_for_read(
    store: DuckDB, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Path(f"{log}.1"), Path(f"{log}.2")
    one.write_text(combined("GET /a HTTP/1.1"))
    write(log, range(3))
    real = Growth.seen

    def rotated_just_now(growth: Growth, path: str) -> Any:
        found = real(growth, path)
        if path == str(one) and not two.exists():
            one.rename(two)
            log.rename(one)
        return found

    monkeypatch.setattr(Growth, "seen", rotated_just_now)
    follower = following(store, log)
    follower.step()
    while follower.step():
        pass
    assert (follower.state.state, store.count()) == ("ok", 4)


def test_a_packed_file_that_is_rotated_once_it_is_whole_is_no_trouble_any_more(store: DuckDB, log: Path) -> None:
    follower, packed = following(store, log), Path(f"{log}.1.gz")
    whole = gzip.compress(combined("GET /a HTTP/1.1").encode() * 40)
    packed.write_bytes(whole[:-9])
    follower.step()
    assert follower.state.state == "unreadable"
    packed.rename(f"{log}.2.gz")
    packed.write_bytes(gzip.compress(combined().encode()))
    follower.step()
    assert f"{log}.2.gz cannot be unpacked to its end" in follower.state.message
    Path(f"{log}.2.gz").write_bytes(whole)
    packed.rename(f"{log}.3.gz")
    while follower.step():
        pass
    assert (follower.state.state, store.count()) == ("ok", 41)


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


def test_a_log_that_was_read_as_another_services_is_told_and_read_once_that_is_removed(
    store: DuckDB, log: Path
) -> None:
    write(log, range(3))
    witness = Witness(store, lambda: NOW, 400)
    wrong = Follower((f"{log}*",), witness, lambda: NOW_NS, chosen(None), Origin("nginx"))
    assert not wrong.step()
    follower = following(store, log)
    for _ in range(2):
        assert not follower.step()
        assert follower.state == (
            "unreadable",
            f"{log} was read as requests of nginx: as dashboard's they would be there a second time. "
            "Where dashboard is right, take those out, and read it then: tailspan remove-log nginx",
        )
    assert (store.count(), store.remove_log("nginx"), store.count()) == (3, 3, 0)
    while follower.step():
        pass
    assert (follower.state.state, store.count()) == ("ok", 3)
    assert store.remove_log("dashboard") == 3
