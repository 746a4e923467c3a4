"""`tailspan backfill` as its users run it: a process, a pipe, a table, Ctrl-C."""

import fcntl
import re
import signal
import subprocess
import sys
import termios
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import httpx
import pytest

from tests.server.logs import combined
from tests.server.test_commands import TAILSPAN, Start, environment, run, start

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
        assert table["coverage"].startswith("0.0%")
        assert requests(url) == 4


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
    done = run("backfill", str(log), TAILSPAN_URL=url)
    table = told(done.stdout)
    assert (done.returncode, int(table["added"].split()[0].replace(",", ""))) == (0, 30_000 - before)
    assert requests(url) == 30_000


def test_a_log_that_cannot_be_read_is_told_and_nothing_else(start: Start, tmp_path: Path) -> None:
    done = run("backfill", str(tmp_path / "no.log"), TAILSPAN_URL=start().url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "No such file or directory. Look for it: ls -l" in " ".join(done.stderr.split())


@pytest.mark.parametrize("wrong", [("--zone", "Nowhere"), ("--format", "$status")])
def test_a_wrong_option_is_told_before_anything_is_read(wrong: tuple[str, str]) -> None:
    done = run("backfill", "/nowhere.log", *wrong)
    assert done.returncode == 2, done.stderr
    assert wrong[0] in done.stderr
