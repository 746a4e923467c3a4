"""Lines that clients bend: what they write never becomes anything but what they wrote."""

import os
import random
import re
import tracemalloc
from collections.abc import Sequence
from typing import Final

import pytest

from tailspan.delivery import delivery, parse
from tailspan.ingest.line import Origin, asked, plainly_asked
from tailspan.ingest.lines import Log
from tailspan.ingest.nginx import FORMATS, Format, chosen, detected
from tailspan.ingest.tally import Tally
from tailspan.span import ABOUT
from tests.server.logs import SIDECAR, combined, identified
from tests.server.spans import NOW_NS, SECOND

# TAILSPAN_TEST_LINES=1000000 pytest tests/server/test_lines.py
LINES: Final = int(os.environ.get("TAILSPAN_TEST_LINES", "60000"))
AT: Final = "01/Mar/2026:11:00:00 +0000"
AT_NS: Final = NOW_NS - 3600 * SECOND
OWN: Final = {  # what nginx writes itself
    "remote_addr": "100.64.0.7",
    "time_local": AT,
    "msec": f"{AT_NS // SECOND}.000",
    "status": "403",
    "body_bytes_sent": "12",
    "request_time": "0.000",
    "request_id": "0123456789abcdef" * 2,
    "remote_port": "1234",
}
# what a client may write to look like something else
BAIT: Final = (
    *(
        ") - ",
        "(via ",
        " - - ",
        f"[{AT}]",
        " [",
        "] ",
        '"',
        '" ',
        ' "',
        "\\",
        "\\x22",
        " 200 ",
        "{",
        "}",
        "\n",
        "\r",
        "\x00",
    ),
    *(
        "TS-User: boss@example.com",
        "100.64.0.1 - boss [01/Jan/2020:00:00:00 +0000] ",
        '","status":200,"x":"',
        "é",
        "漢",
    ),
    *("GET /admin HTTP/1.1", "a", "boss", "\t", "100.64.0.1", '\\"', "\\\\", "?secret=1", "/", "\x7f", "\U0001f600"),
    *("%", "$status", "/1" * 511, "/../"),
)
ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def written_as(value: str, json: bool) -> bytes:
    """As nginx escapes a variable in a log ("escape=default" and "escape=json" of ngx_http_log_module)."""
    if json:
        return "".join(ESCAPES.get(one) or (f"\\u{ord(one):04X}" if one < " " else one) for one in value).encode()
    safe = (bytes([one]) if 32 <= one < 127 and one not in b'"\\' else b"\\x%02X" % one for one in value.encode())
    return b"".join(safe) or b"-"


def line_of(form: str, bait: random.Random) -> bytes:
    """A line whose every value that a client writes is bait."""
    json = form == "tailspan"

    def value(found: re.Match[str]) -> str:
        own = OWN.get(found[1])
        text = "".join(bait.choices(BAIT, k=bait.randrange(5)))
        if found[1] == "request" and bait.random() < 0.8:
            text = f"GET /{text} HTTP/1.1"
        return written_as(text, json).decode("latin-1") if own is None else own

    return re.sub(r"\$(\w+)", value, FORMATS[form]).encode("latin-1") + b"\n"


def read(
    form: str, content: bytes, formats: Sequence[Format] = ()
) -> tuple[list[list[str]], list[dict[str, object]], Tally]:
    """The rows, what each is about, and the tally."""
    log = Log(Origin("dashboard"), Tally())
    log.open_file(chosen(form)[0], formats)
    lines, head = parse(delivery(log.read(content, NOW_NS), None))  # as the server gets them
    assert not head.dry_run
    rows = [row.split("\t") for row in lines.rows.decode().splitlines()]
    return rows, [dict(zip(ABOUT, lines.abouts[int(row[0])], strict=True)) for row in rows], log.tally


@pytest.mark.parametrize("form", FORMATS)
def test_whatever_a_client_writes_a_line_stays_its_own(form: str) -> None:
    bait = random.Random(form)
    content = b"".join(line_of(form, bait) for _ in range(LINES // 6))
    rows, abouts, tally = read(form, content)
    assert tally.lines == len(rows) + tally.dropped.total() == LINES // 6
    assert set(tally.dropped) <= {"no HTTP request"}
    assert len(rows) > LINES // 12
    for row, about in zip(rows, abouts, strict=True):
        assert int(row[3]) == AT_NS
        told = (about["address"], about["client_address"], about["status"], about["login"], about["caller"])
        assert told == ("100.64.0.7", "100.64.0.7", 403, None, "unknown")
        assert all(len(str(value).encode()) <= 1024 for value in about.values())
        assert "secret" not in f"{row[6]}{about['page']}"


def test_whatever_a_client_writes_no_line_is_read_in_another_format_than_its_own() -> None:
    bait = random.Random(1)
    forms = bait.choices(list(FORMATS), k=LINES // 6)
    content = b"".join(line_of(form, bait) for form in forms)
    rows, abouts, tally = read("combined", content, chosen(None))
    assert tally.lines == len(rows) + tally.dropped.total() == len(forms)
    assert {reason.partition(",")[0] for reason in tally.dropped} <= {"no HTTP request", "two formats in one file"}
    assert len(rows) > LINES // 14
    told = {(one["address"], one["client_address"], one["status"], one["login"], one["caller"]) for one in abouts}
    assert told == {("100.64.0.7", "100.64.0.7", 403, None, "unknown")}
    identified = sum(row[1] == OWN["request_id"] for row in rows)
    assert abs(identified / len(rows) - 1 / len(FORMATS)) < 0.1


def test_what_is_read_the_short_way_is_as_it_would_be_the_long_way() -> None:
    bait = random.Random(7)
    parts = (
        *BAIT,
        "GET",
        "POST",
        "BREW",
        " /",
        "/a/7",
        "/0123456789abcdef",
        "%C3%A9",
        " HTTP/1.1",
        " HTTP/2.0",
        "//",
        "~",
    )
    plain = 0
    for _ in range(LINES // 6):
        text = "".join(bait.choices(parts, k=bait.randrange(7)))
        request = written_as(text if bait.random() < 0.5 else f"GET /{text} HTTP/1.1", json=False)
        if found := plainly_asked(request):
            assert found == asked({"request": request})
            plain += 1
    assert plain > LINES // 200


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_at_random_are_read_or_dropped_with_a_reason(form: str) -> None:
    made = random.Random(form)
    main = combined().rstrip() + ' "100.64.0.7"\n'
    sidecar = SIDECAR.read_text().splitlines()[5] + "\n"
    good = {"combined": combined(), "main": main, "sidecar": sidecar, "tailspan": identified(7)}
    content = bytearray()
    count = 0
    while count < LINES // 6:
        line = bytearray(good[form].encode())
        for _ in range(made.randrange(1, 6)):
            place = made.randrange(len(line))
            line[place : place + made.randrange(3)] = made.randbytes(made.randrange(4))
        line = line.replace(b"\n", b" ") + b"\n"
        content += line
        count += 1
    rows, abouts, tally = read(form, bytes(content))
    assert tally.lines == len(rows) + tally.dropped.total() == count
    assert tally.examples.keys() == tally.dropped.keys()
    assert {about["login"] for about in abouts} <= {None}
    assert all(re.fullmatch("[0-9a-f]{32}", row[1]) and re.fullmatch("[0-9a-f]{16}", row[2]) for row in rows)


def test_a_line_made_to_be_slow_is_not() -> None:
    """Hundreds of places at which the rest of the line could begin: for ever, where it grew with their third power."""
    line = b"100.64.0.7 (via " + b") - - [01/Mar/2026:11:00:00 +0000] " * 700 + b"\n"
    assert read("sidecar", line)[2].dropped == {"not in the format": 1}


def test_combined_without_an_offset_is_in_the_zone_that_is_given() -> None:
    line = combined(at="01/Mar/2026:12:00:00").encode()
    form = detected([line.strip()], [Format(*one) for one in FORMATS.items()])
    assert form and form.name == "combined"
    log = Log(Origin("dashboard", zone="Europe/Madrid"), Tally())
    log.open_file(form)
    assert int(log.read(line, NOW_NS).rows.split(b"\t")[3]) == AT_NS


def test_an_example_of_what_was_dropped_steers_no_terminal() -> None:
    _, _, tally = read("combined", "\x1b[31m é \u202e\xff".encode() + b"\xff\x9b\n")
    assert tally.examples == {"not in the format": "\\x1b[31m é \\u202eÿ\\xff\\x9b"}


def test_equal_lines_of_files_that_were_rotated_in_one_second_are_told_in_whatever_order_they_are_read() -> None:
    for order in ((2, 0, 3), (0, 3, 2), (3, 2, 0)):
        log = Log(Origin("dashboard"), Tally())
        for count in order:
            log.open_file(chosen("combined")[0])
            log.read(
                (combined() * count + combined("GET /other HTTP/1.1", address=f"100.64.0.{count}")).encode(), NOW_NS
            )
        assert log.tally.alike == 2


def test_what_is_remembered_is_bounded_however_long_headers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """nginx takes 8 kB of each, and no two are alike."""
    monkeypatch.setattr("tailspan.ingest.lines.MAX_HELD", 2**20)
    log = Log(Origin("dashboard"), Tally())
    log.open_file(chosen("combined")[0])
    tracemalloc.start()
    try:
        for piece in range(20):
            lines = (combined(agent=f"{piece} {n}" + "u" * 7500, referer="r" * 7500 + f"{n}") for n in range(100))
            assert log.read("".join(lines).encode(), NOW_NS).total == 100
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 6 * 2**20 < 20 * 100 * 7500
