"""What lies there as a log: in one format or several, broken, huge, closed, changed while it is read."""

import gzip
import os
import re
import shutil
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from starlette.testclient import TestClient

from tailspan.errors import LogError
from tailspan.ingest.nginx import FORMATS, chosen
from tailspan.logfiles import LogFile, in_order, look
from tailspan.sending import Sender
from tests.server.logs import (
    ID,
    combined,
    counts,
    identified,
    logs,
    parent_of,
    read,
    requests,
    written,
)
from tests.server.spans import ANA, NOW, export, span
from tests.stack.engines import small_disk


def test_what_is_no_request_is_dropped_with_its_reason_and_an_example(client: TestClient, tmp_path: Path) -> None:
    lines: list[str | bytes] = [
        combined(),
        combined(r"\x16\x03\x01\x02\x00", 400),
        combined("", 408),
        combined(at="31/Feb/2026:11:00:00 +0000"),
        combined(at="01/Mar/2126:11:00:00 +0000"),
        b"\xff\xfe\x00 any bytes\n",
        combined()[:60],
    ]
    found = read(client, written(tmp_path / "a.log", *lines))
    assert counts(found) == {"lines": 7, "added": 1}
    assert {reason: dropped["lines"] for reason, dropped in found["dropped"].items()} == {
        "no HTTP request": 2,
        "no such time": 1,
        "more than ten minutes in the future: set the clock": 1,
        "not in the format": 1,
        "torn: it has no end": 1,
    }
    assert found["dropped"]["no such time"]["example"] == str(lines[3]).strip()


def test_lines_are_read_in_the_format_that_each_is_in(client: TestClient, tmp_path: Path) -> None:
    """As where nginx's settings change while it writes, and an old worker ends a request after that."""
    old = [combined(f"GET /{number} HTTP/1.1") for number in range(60)]
    new = [identified(number) for number in range(30)]
    path = written(tmp_path / "a.log", *old[:50], *new[:10], old[50], *new[10:], *old[51:], "neither\n")
    assert counts(read(client, path)) == {"lines": 91, "added": 90}
    assert counts(read(client, path, since_ns=0)) == {"lines": 91, "known": 90}


@pytest.mark.parametrize("first", ["combined", "tailspan"])
def test_of_a_request_that_is_written_in_two_formats_the_first_line_is_kept_wherever_a_reading_ends(
    client: TestClient, tmp_path: Path, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers; equal requests in a second; and before that nginx wrote each once."""
    monkeypatch.setattr("tailspan.logfiles.PIECE", 7000)
    monkeypatch.setattr("tailspan.ingest.fitting.AT_ONCE", 1000)
    lines = [combined(f"GET /old/{number} HTTP/1.1") for number in range(9)]
    for number in range(100):
        request = f"GET /{number // 3} HTTP/1.1"
        at = NOW - timedelta(hours=1)
        both = [combined(request), identified(ID + number, at=at, request=request)]
        both = both if first == "combined" else both[::-1]
        if number % 5 == 4:  # another worker wrote between
            lines[-1:] = [both[0], lines[-1], both[1]]
        else:
            lines += both
    told = span(ID, ANA | {"http.route": "/{id}", "url.path": "/0"}, ago=3600) | {"parentSpanId": parent_of(ID)}
    client.post("/v1/traces", json=export(told))
    for ends in (30, 31, len(lines)):
        read(client, written(tmp_path / "a.log", *lines[:ends]))
    assert requests(client) == 109
    found = read(client, str(tmp_path / "a.log"), since_ns=0)
    assert (found["lines"], found["known"] + found["twins"]) == (209, 109)
    [(reason, dropped)] = found["dropped"].items()
    assert (reason.startswith("two formats in one file"), dropped["lines"]) == (True, 100)


def test_the_first_request_that_is_written_twice_is_there_once_though_its_first_line_ends_what_is_read_at_once(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [combined(f"GET /{number} HTTP/1.1") for number in range(10)]
    monkeypatch.setattr("tailspan.ingest.fitting.AT_ONCE", sum(map(len, lines)))
    both = identified(1, at=NOW - timedelta(hours=1), request="GET /9 HTTP/1.1")
    assert counts(read(client, written(tmp_path / "a.log", *lines, both))) == {"lines": 11, "added": 10}


def test_the_second_line_of_a_request_is_known_behind_those_of_sixty_others(client: TestClient, tmp_path: Path) -> None:
    """As workers write them that serve as many at once."""
    asked = [f"GET /{number} HTTP/1.1" for number in range(60)]
    at = NOW - timedelta(hours=1)
    second = [identified(ID + number, at=at, request=one) for number, one in enumerate(asked)]
    found = read(client, written(tmp_path / "a.log", *map(combined, asked), *second))
    assert counts(found) == {"lines": 120, "added": 60}
    [dropped] = found["dropped"].values()
    assert dropped["lines"] == 60


@pytest.mark.parametrize(
    "changed",
    [
        *({"bytes": "512"}, {"remote_user": "ana"}, {"referer": "https://dash.tail.ts.net/"}, {"user_agent": "curl/8"}),
        *({"request": "GET /prices?b HTTP/1.1"}, {"status": "201"}, {"remote_addr": "100.64.0.8"}),
    ],
)
def test_requests_of_one_second_in_two_formats_that_differ_in_anything_both_tell_are_two(
    client: TestClient, tmp_path: Path, changed: dict[str, str]
) -> None:
    """As of two servers of one nginx that write one file, each in its own."""
    second = identified(ID, at=NOW - timedelta(hours=1), **{"request": "GET /prices?a HTTP/1.1"} | changed)
    path = written(tmp_path / "a.log", combined("GET /prices?a HTTP/1.1"), second)
    assert counts(read(client, path)) == {"lines": 2, "added": 2}


def test_two_formats_that_have_the_request_in_parts_are_told_apart_by_its_path(
    client: TestClient, tmp_path: Path
) -> None:
    (conf := tmp_path / "nginx.conf").write_text(
        """log_format short '$remote_addr $msec $request_method "$request_uri" $status';
        log_format long 'long $remote_addr $msec $request_method "$request_uri" $status';"""
    )
    told = f'100.64.0.7 {NOW.timestamp():.3f} GET "/{{}}" 200\n'
    path = written(tmp_path / "a.log", told.format("a"), f"long {told.format('b')}", f"long {told.format('a')}")
    found = read(client, path, form=str(conf))
    assert counts(found) == {"lines": 3, "added": 2}
    [dropped] = found["dropped"].values()
    assert dropped["example"].endswith('GET "/a" 200')


@pytest.mark.parametrize("packed", [False, True])
def test_megabytes_without_an_end_of_line_are_one_that_is_dropped(
    client: TestClient, tmp_path: Path, *, packed: bool
) -> None:
    """As a crash leaves them, where nginx writes on."""
    after = [combined(f"GET /{number} HTTP/1.1") for number in range(4)]
    content = "".join([combined(), "\0" * 9_000_000, *after]).encode()
    path = written(tmp_path / "a.log", gzip.compress(content) if packed else content)
    found = read(client, path)
    assert counts(found) == {"lines": 5, "added": 4}  # what nginx wrote on stands in the line that has no end
    [(reason, dropped)] = found["dropped"].items()
    assert (reason, dropped["lines"]) == ("no end within a megabyte", 1)
    assert read(client, path)["bytes_read_before"] == len(content)
    assert counts(read(client, path, since_ns=0)) == {"lines": 5, "known": 4}
    ending = written(tmp_path / "b.log", combined("GET /b HTTP/1.1"), "\0" * 9_000_000)
    found = read(client, ending)
    assert (counts(found), list(found["dropped"])) == ({"lines": 2, "added": 1}, ["torn: it has no end"])


def test_each_version_of_http_is_read_over_either_ip_and_nobody_knows_how_long_it_took(
    client: TestClient, tmp_path: Path
) -> None:
    addresses, versions = ("100.64.0.7", "fd7a:115c:a1e0::7"), ("1.0", "1.1", "2.0", "3.0")
    lines = [combined(f"GET /a/7?q=1 HTTP/{one}", address=address) for one in versions for address in addresses]
    assert counts(read(client, written(tmp_path / "a.log", *lines))) == {"lines": 8, "added": 8}
    found = [(log["ip"], log["endpoint"], log["response_time_ms"]) for log in logs(client)]
    assert sorted(found) == sorted((address, "/a/{id}", None) for address in addresses * 4)


def test_of_several_files_one_that_cannot_be_read_costs_no_other(client: TestClient, tmp_path: Path) -> None:
    good = written(tmp_path / "good.log", combined())
    bad = written(tmp_path / "bad.log", "what is this?\n")
    misspelt = str(tmp_path / "god.log")
    told = r"(?s)bad.log is in none of these formats.*combined: .*what is this\?.*--format"
    with pytest.raises(LogError, match=told):  # it stops before anything is sent
        read(client, misspelt, good, bad)
    assert requests(client) == 0
    found = read(client, misspelt, good)
    assert (counts(found), found["files"]) == ({"lines": 1, "added": 1}, 1)
    [missing] = found["problems"]
    assert missing.startswith(f"{misspelt} cannot be read: No such file or directory. Look for it: ls -l")


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01\x01\x00" + bytes(range(128, 256)), b"PK\x03\x04", bytes(3000)])
def test_what_is_no_text_is_a_problem_also_where_no_line_ends(
    client: TestClient, tmp_path: Path, content: bytes
) -> None:
    good, binary = written(tmp_path / "good.log", combined()), written(tmp_path / "ls", content)
    with pytest.raises(LogError, match=r"ls is no text: it begins .*\. Name the files of nginx's access_log\.$"):
        read(client, binary)
    found = read(client, good, binary)
    assert (found["added"], len(found["problems"]), found["empty"], found["dropped"]) == (1, 1, [], {})


def test_a_file_that_is_not_in_the_format_that_was_given_is_not_told_to_give_one(
    client: TestClient, tmp_path: Path
) -> None:
    log = written(tmp_path / "a.log", "what is this?\n")
    told = r"(?s)none of these formats:\n  {}: .*Look which log_format the access_log of this file names.*{} are known"
    for form, name in (("main", "main"), ("$remote_addr $msec $status $request", "own")):
        with pytest.raises(LogError, match=told.format(name, ", ".join(FORMATS))) as raised:
            read(client, log, form=form)
        assert "--format" not in str(raised.value)


def test_a_format_that_lets_clients_write_lines_is_refused_where_the_log_is_in_it_and_else_left_out(
    client: TestClient, tmp_path: Path
) -> None:
    own = '$remote_addr [$time_local] "$request" $status'
    both = f"log_format debug escape=none 'debug {own}'; log_format own '{own}';"
    line = '100.64.0.7 [01/Mar/2026:11:00:00 +0000] "GET /prices HTTP/1.1" 200\n'
    found = read(client, written(tmp_path / "a.log", line, line, f"debug {line}"), form=both)
    assert counts(found) == {"lines": 3, "added": 2}
    assert found["dropped"] == {"not in the format": {"lines": 1, "example": f"debug {line.rstrip()}"}}
    unsafe = written(tmp_path / "b.log", line, f"debug {line}", f"debug {line}")
    with pytest.raises(LogError, match=r"cannot be believed\. The log_format debug .*Take escape=json"):
        read(client, unsafe, form=both)


def test_a_missing_file_and_a_directory_say_what_to_do(client: TestClient, tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"No such file or directory\. Look for it: ls -l"):
        read(client, str(tmp_path / "no.log"))
    with pytest.raises(LogError, match=r"Is a directory\. Name its files: .*/access\.log\*"):
        read(client, str(tmp_path))


def test_a_name_that_is_no_utf_8_is_shown(client: TestClient, tmp_path: Path) -> None:
    shown, path = f"{tmp_path}/caf\\xe9\\x1b.log", tmp_path / os.fsdecode(b"caf\xe9\x1b.log")
    with pytest.raises(LogError, match=f"{re.escape(shown)} cannot be read: No such file"):
        read(client, str(path))
    assert read(client, written(path))["empty"] == [shown]
    written(path, gzip.compress(combined().encode())[:-9])
    [problem] = read(client, str(path))["problems"]
    assert problem.startswith(f"{shown} cannot be unpacked to its end")


def test_a_log_of_which_no_line_is_like_another_is_read(client: TestClient, tmp_path: Path) -> None:
    """What travels of each is much longer than the line."""
    lines = [combined(f"GET /{n} HTTP/1.1".replace("0", "o"), address="fd7a::1", agent=f"{n}") for n in range(25_000)]
    path = written(tmp_path / "a.log", *lines)
    assert counts(read(client, path, origin={"service": "s" * 99})) == {"lines": 25_000, "added": 25_000}


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_a_log_of_another_user_says_who_may_be_let_in_and_how(tmp_path: Path) -> None:
    """Where logs lie alone, by a rule that holds after the next rotation; never for all of anybody's home."""
    path = written(tmp_path / "a.log", combined())
    Path(path).chmod(0o600)
    closed = next(parent for parent in reversed(Path(path).parents) if not parent.stat().st_mode & 0o001)
    assert _refused(path).endswith(f"Allow it: sudo setfacl -m u:nobody:x {closed}; sudo setfacl -m u:nobody:r {path}")
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (logs := Path(folder) / "my logs").mkdir(0o755)
        path = written(logs / "a.log", combined())
        mend = f"Allow it: sudo setfacl -R -m u:nobody:rX -m d:u:nobody:rX '{logs}'"
        Path(path).chmod(0o600)
        assert _refused(path).endswith(f"It belongs to uid 0, group 0; this is uid 65534. {mend}")
        logs.chmod(0o700)
        assert _refused(path).endswith(mend)


def _refused(path: str) -> str:
    """What somebody is told who may not read it; a remark on where setfacl comes from is left out."""
    os.seteuid(65534)
    try:
        with pytest.raises(LogError) as refused:
            look(path, chosen(None), "UTC")
    finally:
        os.seteuid(0)
    assert f"{path} cannot be read: Permission denied. " in str(refused.value)
    return str(refused.value).removesuffix(" (it is in the package acl)")


def test_a_file_that_is_rotated_while_it_reads_is_told_and_the_others_are_read(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = tmp_path / "access.log.1", tmp_path / "access.log"
    gone, rest = tmp_path / "access.log.0", combined() * 4
    for number, file in enumerate((gone, path, new)):
        written(file, combined(f"GET /{number} HTTP/1.1"), rest)

    def rotated_just_now(files: Iterable[LogFile]) -> list[LogFile]:
        found = in_order(files)
        gone.unlink()
        path.rename(tmp_path / "access.log.2")
        new.rename(path)
        return found

    monkeypatch.setattr("tailspan.backfill.in_order", rotated_just_now)
    found = read(client, str(gone), str(path), str(new))
    assert (counts(found), len(found["problems"])) == ({}, 3)
    told = f"{path} was rotated while this ran, and not read to its end. Run this again: nothing is added twice."
    assert told in found["problems"]
    monkeypatch.undo()
    assert counts(read(client, str(path), str(tmp_path / "access.log.2"))) == {"lines": 10, "added": 6, "known": 4}


def test_a_file_that_is_emptied_while_it_reads_is_told(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by copytruncate: the copy has the rest."""
    monkeypatch.setattr("tailspan.logfiles.PIECE", 1000)
    path = written(tmp_path / "access.log", *(combined(f"GET /{number} HTTP/1.1") for number in range(40)))
    real = Sender.send

    def emptied_just_now(sender: Sender, *of: Any) -> None:
        monkeypatch.undo()
        shutil.copy(path, tmp_path / "access.log.1")
        os.truncate(path, 0)
        real(sender, *of)

    monkeypatch.setattr(Sender, "send", emptied_just_now)
    found = read(client, path)
    assert 0 < found["added"] < 40
    assert (len(found["problems"]), "was rotated while this ran" in found["problems"][0]) == (1, True)
    assert read(client, str(tmp_path / "access.log.1"))["added"] == 40 - found["added"]


def test_the_commands_that_mend_it_may_be_pasted(client: TestClient, tmp_path: Path) -> None:
    (folder := tmp_path / "your access").mkdir()
    (nowhere := folder / "access.log").symlink_to(folder / "gone")
    for path, command in (
        (folder / "no.log", f"ls -l '{folder}'"),
        (folder, f"Name its files: '{folder}'/access.log*"),
        (nowhere, f"ls -l '{nowhere}'"),
    ):
        with pytest.raises(LogError) as problem:
            read(client, str(path))
        assert str(problem.value).endswith(command)


def test_of_a_full_disk_it_is_told_where_nginx_writes_there(client: TestClient, tmp_path: Path) -> None:
    with small_disk(tmp_path / "my disk", "64k") as place:
        log = Path(written(place / "access.log", combined()))
        with pytest.raises(OSError, match="No space"), (place / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        [problem] = read(client, str(log))["problems"]
        mend = f"Make room: df -h '{place}'; sudo du -axh '{place}' | sort -h | tail"
        assert problem == f"The disk of {place} is full: nginx does not write down what it sees now. {mend}"
        os.utime(log, (0, 0))  # an archive
        assert read(client, str(log))["problems"] == []


def test_what_is_no_file_is_told(client: TestClient, tmp_path: Path) -> None:
    """As nginx's image links its logs, and where what is linked to is not mounted."""
    output, nowhere, pipe = (tmp_path / name for name in ("output", "nowhere", "pipe"))
    output.symlink_to("/dev/null")
    nowhere.symlink_to(tmp_path / "gone")
    os.mkfifo(pipe)
    for path, told in (
        (output, f"{output} links to /dev/null, which is no file. nginx's image has that"),
        (nowhere, f"{nowhere} links to {tmp_path / 'gone'}, which is not there. Look for it, and mount it too: ls -l"),
        (pipe, f"{pipe} is no file. nginx's image has that: name another file in its access_log. A pipe: zcat FILE |"),
    ):
        with pytest.raises(LogError) as problem:
            read(client, str(path))
        assert told in str(problem.value)
