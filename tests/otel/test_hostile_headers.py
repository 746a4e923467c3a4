"""100,000 requests with header bytes nobody thought of: 1,000 sets are drawn, and each is sent in 100 arrangements."""

import asyncio
import logging
from collections.abc import Iterator
from itertools import cycle, islice, permutations
from typing import Any, Final, NamedTuple
from unicodedata import category

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from tailspan_otel import attributes as name
from tailspan_otel import instrument
from tailspan_otel.identity import IDENTITY_HEADERS, READ
from tailspan_otel.middleware import Capture

from tests.otel.receiver import end
from tests.otel.test_capture import Kept

SECRET: Final = b"s3cr3t-of-a-header"
SETS: Final = 1000
ARRANGEMENTS: Final = 100
REWRITTEN: Final = ("100.64.0.8", 0)  # by a uvicorn that believes everybody
HUNG_UP: Final = ("", 1)  # a server knows no other end of such a connection either
UNTRUSTED: Final[list[tuple[str, int] | None]] = [
    *(("127.0.0.2", 4000), ("100.64.0.9", 4000), ("192.168.1.7", 4000), ("fd7a:115c:a1e0::9", 4000)),
    *(("::2", 4000), ("name", 4000), ("", 4000), HUNG_UP),
    REWRITTEN,
]
TRUSTED: Final[list[tuple[str, int] | None]] = [  # port 0 with a forwarded address is uvicorn's: it trusts that peer
    *(("127.0.0.1", 48268), ("::1", 48268), ("::ffff:127.0.0.1", 48268), ("100.64.0.2", 0), None),
]
NAMES: Final = sorted({*IDENTITY_HEADERS, *READ, b"x-forwarded-for", b"x-real-ip", b"host", b"referer", b"user-agent"})
THOUGHT_OF: Final = [
    *(
        b"ceo@example.com",
        b"100.64.0.2",
        b"100.64.0.8",
        b"100.64.0.2, 127.0.0.1",
        b"::ffff:100.64.0.2, x",
        b"fe80::1%1",
        b"?1",
        b"%",
    ),
    *(b"=?utf-8?q?a=0Ab?=", b"=?utf-8?b?!!!?=", b"=?x?q?a?=", b"=?utf-8?q?=ED=A0=80?=", "Zoë".encode(), b"1" * 5000),
]


class Sent(NamedTuple):
    client: tuple[str, int] | None
    headers: list[tuple[bytes, bytes]]


def arranged(values: list[bytes], names: list[bytes]) -> list[Sent]:
    """Every value in the place of every other, from every peer in turn, under some of the names."""
    orders = islice(permutations(values), ARRANGEMENTS)  # of 120 and more
    secret = [(b"authorization", SECRET), (b"cookie", b"a=" + SECRET)]
    return [
        Sent(client, [*zip(names, order, strict=False), *secret])
        for order, client in zip(orders, cycle(UNTRUSTED + TRUSTED), strict=False)
    ]


class Service:
    """One app for all of them, which answers 204."""

    def __init__(self) -> None:
        self.kept = Kept()
        self.app = Starlette()
        instrument(self.app, exporter=self.kept)
        self.recorder: Any = self.app.user_middleware[0].kwargs["recorder"]

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def ask(self, requests: list[Sent]) -> list[dict[str, Any]]:
        """What was recorded of each."""
        capture: Any = Capture(self.answer, self.recorder)
        answered: list[int] = []

        async def send(message: Any) -> None:
            answered.append(message.get("status", 0))

        for number, sent in enumerate(requests):
            own = "100.64.0.1" if sent.client == REWRITTEN else "127.0.0.1"  # no proxy of ours comes to the first
            server = ("/run/app.sock", None) if sent.client is None else (own, 8000)
            client = None if sent.client == HUNG_UP else sent.client
            scope = {"type": "http", "path": f"/{number}", "headers": sent.headers, "client": client, "server": server}
            await capture(scope, asyncio.Event().wait, send)
        self.recorder.outlet.flush()
        assert answered == [204, 0] * len(requests)
        recorded = {each["url.path"]: each for each in self.kept.requests()}
        self.kept.spans.clear()
        return [recorded.pop(f"/{number}") for number in range(len(requests))]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS_SOCKET", "/nonexistent/tailscaled.sock")
        made = Service()
        yield made
        end(made.app)


@settings(max_examples=SETS, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    values=st.lists(st.binary(max_size=80) | st.sampled_from(THOUGHT_OF), min_size=5, max_size=6),
    names=st.permutations(NAMES),
)
@example(values=["a\u00adb".encode(), "👩\u200d💻".encode(), b"\xc2\x85", "\u2028".encode(), b"?1"], names=NAMES)
@example(values=[b"ceo@example.com", b"100.64.0.2", b"ceo", b"Boss", b"?1"], names=NAMES)
def test_no_header_bytes_cost_a_span_tell_a_secret_or_give_an_untrusted_peer_an_identity(
    values: list[bytes], names: list[bytes], service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    requests = arranged(values, names)
    assert len(requests) == ARRANGEMENTS
    with caplog.at_level(logging.DEBUG, "tailspan"):
        recorded = asyncio.run(service.ask(requests))
    for sent, attributes in zip(requests, recorded, strict=True):
        assert SECRET.decode() not in str(attributes)
        login = attributes.get(name.LOGIN)
        assert not {category(each) for each in login or ""} & {"Cc", "Zl", "Zp", "Cs"}
        if sent.client in UNTRUSTED:
            about = (name.CALLER, name.IDENTITY_SOURCE, name.LOGIN, name.FULL_NAME, name.CLIENT_ADDRESS)
            hidden = sent.client == REWRITTEN and b"x-forwarded-for" in dict(sent.headers)
            address = sent.client[0] or None if sent.client and not hidden else None
            assert [attributes.get(key) for key in about] == ["unknown", "none", None, None, address]
    assert not [record for record in caplog.records if record.exc_info or SECRET.decode() in record.getMessage()]
    caplog.clear()
