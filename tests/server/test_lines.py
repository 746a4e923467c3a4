"""Lines that clients bend: what they write never becomes anything but what they wrote."""

import os
import random
import re
from typing import Final

import pytest

from tailspan.errors import SettingError
from tailspan.ingest.line import Origin, asked, plainly_asked
from tailspan.ingest.lines import Log, Tally
from tailspan.ingest.nginx import FORMATS, Format, chosen, detected
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
    *("%", "$status"),
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


def read(form: str, content: bytes) -> tuple[list[list[str]], list[dict[str, object]], Tally]:
    """The rows, what each is about, and the tally."""
    log = Log(Origin("dashboard"), Tally())
    log.open_file(chosen(form)[0])
    lines = log.read(content, NOW_NS)
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
        assert "secret" not in f"{row[5]}{about['page']}"


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
    good = {"combined": combined(), "sidecar": SIDECAR.read_text().splitlines()[5] + "\n", "tailspan": identified(7)}
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


def test_a_log_format_of_ones_own_is_read_as_it_stands_in_nginx_conf() -> None:
    text = """log_format timed '$remote_addr [$time_iso8601] ${request_method} "$request_uri" '
                     '$status rt=$request_time "$http_user_agent"';"""
    [form] = chosen(text)
    line = b'fd7a:115c:a1e0::7 [2026-03-01T12:00:00+01:00] POST "/a%20b/7?q=1" 201 rt=1.500 "curl/8"'
    log = Log(Origin("dashboard"), Tally())
    log.open_file(form)
    lines = log.read(line + b"\n", NOW_NS)
    [about] = lines.abouts.values()
    known = dict(zip(ABOUT, about, strict=True))
    assert (known["method"], known["route"], known["address"]) == ("POST", "/a b/{id}", "fd7a:115c:a1e0::7")
    _, _, _, start, took, path = lines.rows.decode().rstrip("\n").split("\t")
    assert (int(start), int(took), path) == (AT_NS - 3 * SECOND // 2, 3 * SECOND // 2, "/a b/7")
    with pytest.raises(SettingError, match=r"lacks when .*; the answer"):
        chosen("$remote_addr $request")


def test_combined_without_an_offset_is_in_the_zone_that_is_given() -> None:
    line = combined(at="01/Mar/2026:12:00:00").encode()
    form = detected([line.strip()], [Format(*one) for one in FORMATS.items()])
    assert form and form.name == "combined"
    log = Log(Origin("dashboard", zone="Europe/Madrid"), Tally())
    log.open_file(form)
    assert int(log.read(line, NOW_NS).rows.split(b"\t")[3]) == AT_NS
