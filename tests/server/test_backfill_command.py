"""`tailspan backfill` as its users run it: a process, a pipe, a table, Ctrl-C."""

import bz2
import fcntl
import gzip
import json
import lzma
import re
import signal
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from threading import Event
from typing import IO, Any

import httpx
import pytest
from rich.console import Console

from tailspan.backfill import backfill
from tailspan.ingest.line import Origin
from tailspan.ingest.nginx import chosen
from tests.server.logs import combined
from tests.server.spans import ANA, export, span
from tests.server.tailnet import until
from tests.server.test_commands import TAILSPAN, Start, environment, run, start
from tests.stack.engines import free_port

__all__ = ["start"]  # the fixture
AT = f"{datetime.now(UTC) - timedelta(minutes=5):%d/%b/%Y:%H:%M:%S} +0000"


def line(number: int = 0) -> bytes:
    return combined(f"GET /{number} HTTP/1.1", at=AT).encode()


def reading(url: str) -> "subprocess.Popen[bytes]":
    """One that reads what it is piped."""
    pipe = subprocess.PIPE
    return subprocess.Popen([TAILSPAN, "backfill", "-"], env=environment(TAILSPAN_URL=url), stdin=pipe, stdout=pipe)


def unread(pipe: IO[bytes]) -> int:
    """Bytes that its reader has not taken yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def told(table: str) -> dict[str, str]:
    """The closing table: name → what is said of it."""
    return dict(re.split(r" {2,}", row.strip(), maxsplit=1) for row in table.splitlines() if "  " in row.strip())


def requests(url: str) -> int:
    answer = httpx.get(f"{url}/analytics/query?metrics=requests&days=1&service=nginx", trust_env=False, timeout=60)
    return int(answer.json()["rows"][0]["requests"])


def test_equal_lines_of_one_second_that_drip_through_a_pipe_are_all_there_and_once(start: Start) -> None:
    """GoAccess loses some of them."""
    url = start().url
    for added, known in ((4, 0), (0, 4)):
        program = reading(url)
        assert program.stdin and program.stdout
        for part in (line()[:30], line()[30:] + line(), line() + line()[:50], line()[50:]):
            program.stdin.write(part)
            program.stdin.flush()
            while unread(program.stdin) and program.poll() is None:
                time.sleep(0.05)
        program.stdin.close()
        table = told(program.stdout.read().decode())
        program.stdout.close()
        assert program.wait() == 0
        assert table["lines"].startswith("4 ")
        assert (table["added"].split()[0], table["already known"].split()[0]) == (str(added), str(known))
        assert table["coverage"] == "nginx told nothing of itself in that time: not instrumented"
        assert requests(url) == 4


def test_a_server_that_is_being_started_is_waited_for(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `tailspan serve &` on the line before."""
    monkeypatch.setattr("tailspan.sending.START_S", 60)  # this machine may be busy
    log, address, said = tmp_path / "access.log", f"127.0.0.1:{free_port()}", StringIO()
    log.write_bytes(line())
    with httpx.Client(base_url=f"http://{address}", trust_env=False) as client, ThreadPoolExecutor(1) as pool:
        given: dict[str, Any] = {"formats": chosen(None), "origin": Origin("nginx")}
        reading = pool.submit(partial(backfill, [str(log)], client, Console(file=said, width=200), **given))
        waits = f"Nobody answers at http://{address} yet: waiting 60 seconds.\n"
        until(lambda: waits in said.getvalue() or reading.done())
        url = start(TAILSPAN_LISTEN=address).url
        assert reading.result().fates["added"] == requests(url) == 1
        assert said.getvalue().count(waits) == 1


def test_ctrl_c_keeps_what_was_read_and_another_run_adds_the_rest(start: Start, tmp_path: Path) -> None:
    url = start().url
    log = tmp_path / "access.log"
    log.write_bytes(b"".join(map(line, range(30_000))))
    program = reading(url)
    assert program.stdin and program.stdout
    program.stdin.write(log.read_bytes())
    program.stdin.flush()
    while not 0 < requests(url) < 30_000:
        time.sleep(0.1)
    program.send_signal(signal.SIGINT)
    said = program.stdout.read().decode()
    assert (program.wait(), "Stopped. Run it again: nothing is counted twice." in said) == (130, True)
    program.stdin.close()
    program.stdout.close()
    before = requests(url)
    assert int(told(said)["added"].split()[0].replace(",", "")) == before  # also of what was on its way
    done = run("backfill", str(log), TAILSPAN_URL=url)
    table = told(done.stdout)
    assert (done.returncode, int(table["added"].split()[0].replace(",", ""))) == (0, 30_000 - before)
    assert requests(url) == 30_000


def test_ctrl_c_ends_it_with_its_table_also_while_the_server_hangs(tmp_path: Path) -> None:
    """From its second delivery on."""
    log = tmp_path / "access.log"
    log.write_bytes(b"".join(map(line, range(60_000))))
    first, hangs, done = Event(), Event(), Event()
    fates = {"lines": 7, "added": 7, "known": 0, "twins": 0, "too_old": 0, "unresolved": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"file": self.path.rpartition("/")[2], "read_to": 0, "before": ""})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if first.is_set():
                hangs.set()
                done.wait()
            else:
                first.set()
                self._answer(fates)

        def _answer(self, told: dict[str, Any]) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.01)
        known = environment(TAILSPAN_URL=f"http://127.0.0.1:{server.server_port}")
        with subprocess.Popen([TAILSPAN, "backfill", str(log)], env=known, stdout=subprocess.PIPE) as program:
            try:
                until(lambda: hangs.is_set() or program.poll() is not None)
                program.send_signal(signal.SIGINT)
                table = told(program.communicate(timeout=100)[0].decode())
            finally:
                program.kill()
                done.set()
                server.shutdown()
    assert program.returncode == 130
    added, unsent = (int(table[name].split()[0].replace(",", "")) for name in ("added", "not sent"))
    assert (added, unsent > 0) == (7, True)


def test_by_a_crontab_it_says_nothing_but_what_is_wrong(start: Start, tmp_path: Path) -> None:
    """Whose lines throw away what it prints, and mail the rest."""
    url, log = start().url, tmp_path / "access.log"
    log.write_bytes(line())
    assert run("backfill", str(log), TAILSPAN_URL=url).stderr == ""
    wrong = run("backfill", str(log), "--service", "shop", TAILSPAN_URL=url)
    said = f"{log} was read as requests of nginx: as shop's they would be there a second time. "
    fix = "Where shop is right, take those out, and read it then: tailspan remove-log nginx\n"
    assert (wrong.returncode, wrong.stderr) == (1, said + fix)


def test_a_log_that_cannot_be_read_is_told_and_nothing_else(start: Start, tmp_path: Path) -> None:
    done = run("backfill", str(tmp_path / "no.log"), TAILSPAN_URL=start().url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "No such file or directory. Look for it: ls -l" in " ".join(done.stderr.split())


def test_a_packed_log_that_is_cut_off_costs_its_end_only(start: Start, tmp_path: Path) -> None:
    """As one that logrotate is packing just now."""
    cut, begun, whole = tmp_path / "access.log.3.gz", tmp_path / "access.log.2.gz", tmp_path / "access.log.1"
    packed = gzip.compress(b"".join(combined(f"GET /{n * 7919} HTTP/1.1", at=AT).encode() for n in range(9000)))
    cut.write_bytes(packed[:-1000])
    begun.write_bytes(packed[:15])
    whole.write_bytes(line(1) + line(2))
    url = start().url
    done = run("backfill", str(cut), str(begun), str(whole), TAILSPAN_URL=url)
    table = " ".join(done.stdout.split())
    for path in (cut, begun):
        assert re.search(rf"problem {path} cannot be unpacked to its end: .*? It is cut off", table), table
    assert (done.returncode, 8000 < requests(url) < 9002) == (1, True)
    cut.write_bytes(packed)
    assert run("backfill", str(cut), str(whole), TAILSPAN_URL=url).returncode == 0
    assert requests(url) == 9002


@pytest.mark.parametrize(
    ("content", "packer", "unpacker"),
    [
        (lzma.compress(line()), "xz", "xzcat"),
        (bz2.compress(line()), "bzip2", "bzcat"),
        (bytes.fromhex("28b52ffd0458110000780aaefde922"), "zstd", "zstdcat"),  # echo x | zstd
        (gzip.compress(line()), "gzip", "zcat"),
    ],
)
def test_what_is_packed_otherwise_is_told_with_what_unpacks_it(
    content: bytes, packer: str, unpacker: str, start: Start, tmp_path: Path
) -> None:
    log, url = tmp_path / "access log.1", start().url
    log.write_bytes(content)
    done = run("backfill", str(log), TAILSPAN_URL=url)
    piped = subprocess.run(
        [TAILSPAN, "backfill", "-"], env=environment(TAILSPAN_URL=url), input=content, capture_output=True
    )
    told = "{} is packed by {}, and not unpacked here. Unpack it, with the same options: {} | tailspan backfill -"
    assert " ".join(piped.stderr.decode().split()) == told.format("Standard input", packer, unpacker)
    if packer == "gzip":
        assert (done.returncode, requests(url)) == (0, 1)
    else:
        assert " ".join(done.stderr.split()) == told.format(log, packer, f"{unpacker} '{log}'")
        assert (done.returncode, piped.returncode, done.stdout, piped.stdout) == (1, 1, "", b"")


def test_a_file_without_a_whole_line_is_named(start: Start, tmp_path: Path) -> None:
    empty, torn, whole = tmp_path / "empty.log", tmp_path / "torn.log", tmp_path / "whole.log"
    empty.write_bytes(b"")
    torn.write_bytes(line()[:40])
    whole.write_bytes(line())
    url = start().url
    done = run("backfill", str(empty), str(torn), str(whole), TAILSPAN_URL=url)
    rows = [" ".join(row.split()) for row in done.stdout.splitlines()]
    for path in (empty, torn):
        assert f"empty {path} has no whole line" in rows
    assert (done.returncode, rows[0], rows[1].split()[:2]) == (0, "lines 2 in 1 file", ["added", "1"])
    assert any(row.startswith("dropped 1 torn: it has no end, as in: 100.64.0.7") for row in rows)
    program = reading(url)
    said, _ = program.communicate(b"")
    assert (program.returncode, b"Standard input is empty." in said) == (1, True)


def test_standard_input_without_an_end_of_line_is_told_though_it_has_no_end(start: Start) -> None:
    program = reading(start().url)
    assert program.stdin and program.stdout
    program.stdin.write(b"x" * (2**20 + 1))
    program.stdin.flush()
    status = program.wait(timeout=120)
    said = " ".join(program.stdout.read().decode().split())
    program.stdin.close()
    program.stdout.close()
    assert (status, "dropped 1 no end within a megabyte, as in: xx" in said) == (1, True)
    assert "Standard input was not read on: no end within a megabyte. A file that begins like that is read" in said


def test_a_log_that_was_read_under_a_wrong_name_is_taken_out_and_read_under_the_right_one(
    start: Start, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(b"".join(map(line, range(5))))
    url = start().url
    assert run("backfill", str(log), TAILSPAN_URL=url).returncode == 0
    refused = run("backfill", str(log), "--service", "dashboard", TAILSPAN_URL=url)
    table = " ".join(refused.stdout.split())
    assert (refused.returncode, table[:7], "read it then: tailspan remove-log nginx" in table) == (1, "lines 0", True)
    with log.open("rb") as content:
        command = [TAILSPAN, "backfill", "-", "--service", "dashboard"]
        piped = subprocess.run(command, env=environment(TAILSPAN_URL=url), stdin=content, capture_output=True)
    look = " ".join(told(piped.stdout.decode())["look"].split())
    assert look.startswith("In that time a log was read as nginx's, too: 5 requests. If it is this one, these are")
    asked = run("remove-log", "nginx", TAILSPAN_URL=url)  # nobody answers
    assert "5 requests of nginx that only a log told of will be deleted" in asked.stdout + asked.stderr
    assert asked.returncode == 1
    assert requests(url) == 5
    done = run("remove-log", "nginx", "--yes", TAILSPAN_URL=url)
    assert (done.returncode, done.stdout) == (0, "5 requests of nginx are deleted; its logs may be read again.\n")
    assert json.loads(run("remove-log", "dashboard", "--yes", "--json", TAILSPAN_URL=url).stdout)["requests"] == 5
    assert told(run("backfill", str(log), "--service", "dashboard", TAILSPAN_URL=url).stdout)["added"][0] == "5"
    for sure in (["--yes"], []):  # there is nothing to ask about
        nobody = run("remove-log", "nginx", *sure, TAILSPAN_URL=url)
        assert (nobody.returncode, nobody.stderr) == (0, "No log alone told of nginx. Logs told of: dashboard.\n")


def test_callers_that_nobody_named_are_shown_and_counted_by_their_addresses(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    now = f"{datetime.now(UTC):%d/%b/%Y:%H:%M:%S} +0000"
    visitors = ("100.64.0.3", "100.64.0.4", "100.64.0.4", "203.0.113.9")
    log.write_text("".join(combined(at=now, address=address, agent="curl/8") for address in visitors))
    url = start().url
    assert run("backfill", str(log), "--service", "dashboard", TAILSPAN_URL=url).returncode == 0
    title, _, *rows = run("logs", "--service", "dashboard", TAILSPAN_URL=url).stdout.splitlines()
    nobody = "4 requests of callers that nobody named, from 2 tailnet addresses"
    assert title == f"{nobody}, in 24 h. To name them: docs/tailnet.md"
    assert sorted(row.split()[2:] for row in rows) == sorted(
        [address, "-", "GET", "/prices", "200", "-", "api"] for address in visitors
    )
    active = run("active", TAILSPAN_URL=url).stdout.splitlines()
    assert (active[0], active[2:]) == ("0 active", [f"{nobody}, in the last 5 minutes. To name them: docs/tailnet.md"])
    none = run("coverage", "--service", "dashboard", "--environment", "prod", TAILSPAN_URL=url).stderr.split()
    assert " ".join(none).endswith("tailspan backfill FILE --service dashboard --environment prod")
    covered = run("coverage", TAILSPAN_URL=url).stdout
    assert "dashboard told of none of them: it is not instrumented, or it sent nothing all the time." in covered
    older = run("logs", "--hours", "1441", TAILSPAN_URL=url)
    assert (older.returncode, "older ones: tailspan query --list rows --days 61" in older.stderr) == (2, True)


@pytest.mark.parametrize("service", ["tailspan", "dashboard"])
def test_what_is_there_twice_is_said_beside_the_table_of_coverage(service: str, start: Start, tmp_path: Path) -> None:
    url, log = start().url, tmp_path / "access.log"
    at_ns = int(datetime.strptime(AT, "%d/%b/%Y:%H:%M:%S %z").timestamp()) * 10**9
    times = {"startTimeUnixNano": str(at_ns), "endTimeUnixNano": str(at_ns + 10**6)}
    spans = [span(number, ANA | {"url.path": f"/{number}"}) | times for number in (1, 2, 3)]
    told = httpx.post(f"{url}/v1/traces", json=export(*spans, service=service), trust_env=False, timeout=60)
    assert told.status_code == 200
    log.write_text("".join(combined(f"GET /{n} HTTP/1.1", at=AT, address="100.64.0.9") for n in (1, 2, 3)))
    assert run("backfill", str(log), "--service", "dashboard", TAILSPAN_URL=url).returncode == 0
    covered = run("coverage", TAILSPAN_URL=url)
    twice = f"3 of dashboard seem to be there twice, as lines and as {service} told of them"
    assert f"{twice}: docs/backfill.md, Coverage, says" in covered.stdout
    assert ("it is not instrumented" in covered.stdout) is (service == "tailspan")
    assert ("tailspan remove-log dashboard" in covered.stderr) is (service == "dashboard")


def test_a_time_without_offset_is_in_the_zone(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_text(
        "".join(combined(f"GET /{hour} HTTP/1.1", at=f"01/Mar/2026:{hour}:00:00 +0000") for hour in (10, 11))
    )
    zone = ("--zone", "Europe/Madrid", "--since", "2026-03-01T11:30", "--until", "2026-03-01T12:30:00")
    done = run("backfill", str(log), *zone, "--dry-run", "--json", TAILSPAN_URL=start().url)
    found = json.loads(done.stdout)
    assert (found["lines"], found["left_out"]) == (2, 1)


def test_a_dry_run_over_a_file_and_its_copy_says_that_it_counts_twice(start: Start, tmp_path: Path) -> None:
    log, copy = tmp_path / "access.log", tmp_path / "access.log.1"
    for path in (log, copy):
        path.write_bytes(line(1) + line(2))
    url = start().url
    tables = [
        told(run("backfill", *map(str, files), "--dry-run", TAILSPAN_URL=url).stdout) for files in ([log, copy], [log])
    ]
    twice = "; of what two files have, twice as many are told as would be added"
    nobody = "requests that nobody had told of"
    assert [re.sub(" {2,}", " ", table["would be added"]) for table in tables] == [f"4 {nobody}{twice}", f"2 {nobody}"]


def test_a_path_through_a_file_names_the_file(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(line())
    done = run("backfill", f"{log}/x", TAILSPAN_URL=start().url)
    assert f"Not a directory. Name the file: {log}" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "wrong",
    [
        ("--zone", "Nowhere"),
        ("--service", " "),
        ("--since", "noon"),
        ("--until", "yesterday"),
        ("--until", "2026-10-22", "--since", "2026-10-25"),
        ("--since", "2026-10-25", "--until", "2026-10-25"),
    ],
)
def test_a_wrong_option_is_told_with_the_usage_before_anything_is_read(wrong: tuple[str, ...]) -> None:
    done = run("backfill", "/nowhere.log", *wrong)
    assert done.returncode == 2, done.stderr
    assert wrong[0] in done.stderr and "Usage: " in done.stderr


def test_a_wrong_format_is_told_before_anything_is_read() -> None:
    done = run("backfill", "/nowhere.log", "--format", "$status")
    assert (done.returncode, "--format" in done.stderr) == (2, True)


@pytest.mark.parametrize("given", ["combnied", "$status", "/dev/null"])
def test_a_format_that_is_none_is_told_by_the_name_of_its_setting(given: str, tmp_path: Path) -> None:
    known = {"TAILSPAN_DB": f"{tmp_path}/t.duckdb", "TAILSPAN_NGINX_LOG": "/nowhere.log"}
    done = run("serve", TAILSPAN_NGINX_FORMAT=given, **known)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"TAILSPAN_NGINX_FORMAT is {given!r}, which")
    assert "--format" not in done.stderr


def test_what_others_wrote_is_shown_as_it_is(start: Start, tmp_path: Path) -> None:
    log, other = tmp_path / "access.log", tmp_path / "passwd"
    log.write_bytes(line() + combined("GET /[/b]:x: junk", at=AT).encode())
    other.write_text("root:x:0:0:[b]root\n")
    url = start().url
    assert "as in: " in (dropped := told(run("backfill", str(log), TAILSPAN_URL=url).stdout)["dropped"])
    assert '"GET /[/b]:x: junk"' in dropped
    assert "Its first line: root:x:0:0:[b]root" in run("backfill", str(other), TAILSPAN_URL=url).stderr
    log.write_bytes(combined("GET /[/b]:x:/:100: HTTP/1.1", at=AT).encode())
    assert run("backfill", str(log), "--service", ":x:[b]", TAILSPAN_URL=url).returncode == 0
    assert "GET /[/b]:x:/:100: " in run("logs", "--service", ":x:[b]", TAILSPAN_URL=url).stdout
    assert "service :x:[b]: " in run("doctor", TAILSPAN_URL=url).stdout
    assert " :x:[b] " in run("coverage", TAILSPAN_URL=url).stdout
    assert " of :x:[b] are" in run("remove-log", ":x:[b]", "--yes", TAILSPAN_URL=url).stdout
