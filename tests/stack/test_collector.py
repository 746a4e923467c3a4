"""collector-config.yaml in the real collector before the real InfluxDB: what each part of it is for."""

import random
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from tailspan_otel import attributes as names
from tailspan_otel.traffic import ASSET_ENDING

from tailspan.ingest import otlp
from tailspan.span import Span
from tests.stack.engines import ROOT, Collector, Engine, Influxd, free_port, until
from tests.stack.pipeline import CLIENT, OURS, START_NS, Row, body, id_of, ids, post, rows, send, span

CONFIG: Final = (ROOT / "collector-config.yaml").read_text("utf-8")
EVERY_TAG: Final = {
    "service.name": "dashboard",
    "deployment.environment.name": "production",
    "http.route": "/items/{id}",
    "http.request.method": "GET",
    "http.response.status_code": 200,
    "user.name": "ana@example.com",
    "tailscale.node": "ana-laptop",
    "tailscale.node.id": "n1CNTRL",
    "tailscale.address": "100.64.0.7",
    "tailspan.kind": "view",
    "tailspan.source": "live",
    "tailspan.identity.source": "serve_header",
    "tailspan.traffic": "api",
    "tailspan.caller": "person",
    "tailspan.page": "/dashboard",
    "tailspan.card": "card-3",
    "tailspan.variant": "compact",
    "tailspan.timed": False,
}
FIELDS: Final = {
    "user.full_name": "Ana",
    "tailscale.tags": "tag:ci,tag:prod",
    "tailspan.device.guess": "iPhone",
    "tailspan.identity.proven": False,
    "tailspan.identity.claim": "zoe@example.com",
    "tailspan.poll": True,
    "tailspan.by_proxy": True,
    "tailspan.schema": 1,
    "tailspan.visible_ms": 1200,
    "url.path": "/items/1",
    "url.template": "/items/{id}",
    "client.address": "100.64.0.7",
    "user_agent.original": "curl/8",
}
FOREIGN: Final = {
    "http.request.method": "GET",
    "http.route": "/items/:id",
    "http.response.status_code": 200,
    "url.path": "/items/1",
    "user_agent.original": "curl/8",
    "network.peer.address": "127.0.0.1",
}
SERVE: Final = {
    **FOREIGN,
    "http.request.header.tailscale-user-login": ["ana@example.com"],
    "http.request.header.x-forwarded-for": ["100.64.0.7"],
}


Start = Callable[..., Collector]


@pytest.fixture
def start(tmp_path: Path, influxd: Influxd) -> Iterator[Start]:
    """Starts a collector of its own: other settings, `config` in the file's place, a second file `more`."""
    started: list[Collector] = []

    def run(config: str = CONFIG, more: str = "", **environment: str) -> Collector:
        folder = tmp_path / f"collector-{len(started)}"
        collector = Collector(folder, influxd, **environment)
        started.append(collector)
        for name, content in (("config", config), ("more", more)):
            (folder / f"{name}.yaml").write_text(content or "{}", "utf-8")
        place = collector.command.index(str(ROOT / "collector-config.yaml"))
        collector.command[place : place + 1] = [str(folder / "config.yaml"), "--config", str(folder / "more.yaml")]
        collector.start()
        return collector

    yield run
    for collector in started:
        collector.kill()


def arrived(influxd: Influxd, count: int, collector: Collector) -> None:
    kinds = ("request", "view")
    until(lambda: sum(map(influxd.count, kinds)) >= count, f"not all of {count} spans arrived", collector.said)


def read(content: bytes) -> dict[str, Span]:
    """The request spans of a delivery, as the other way in reads them, by the id they have in InfluxDB."""
    delivery = otlp.read(content, otlp.PROTOBUF, "", 2**62)
    return {f"{one.trace_id.hex()}-{one.span_id.hex()}": one for one in delivery.spans}


def record(row: Row) -> Span:
    """The span that a row says there was."""
    tags, more = row.tags, row.attributes
    trace_id, _, span_id = row.id.partition("-")
    duration_ns = int(row.fields["duration_nano"])
    schema, visible_ms = more.get(names.SCHEMA, 0), more.get("tailspan.visible_ms")
    return Span(
        trace_id=bytes.fromhex(trace_id),
        span_id=bytes.fromhex(span_id),
        parent_id=bytes.fromhex(row.fields.get("parent_span_id", "")) or None,
        start_ns=row.start_ns,
        duration_ns=None if names.TIMED in tags else duration_ns,
        path=more.get(names.PATH),
        visible_ms=visible_ms if visible_ms is None or visible_ms >= 0 else None,
        open_ns=duration_ns or None if names.TIMED in tags else None,
        service=tags[names.SERVICE],
        environment=tags.get(names.ENVIRONMENT),
        method=tags[names.METHOD],
        route=tags.get(names.ROUTE),
        status=int(tags[names.STATUS]) if names.STATUS in tags else None,
        login=tags.get(names.LOGIN),
        full_name=more.get(names.FULL_NAME),
        node=tags.get(names.NODE),
        node_id=tags.get(names.NODE_ID),
        tags=more.get(names.TAGS),
        address=tags.get(names.ADDRESS),
        guess=more.get(names.GUESS),
        source=tags[names.SOURCE],
        identity_source=tags[names.IDENTITY_SOURCE],
        proven=more.get(names.PROVEN) is not False,
        caller=tags[names.CALLER],
        traffic=tags[names.TRAFFIC],
        page=tags.get(names.PAGE),
        client_address=more.get(names.CLIENT_ADDRESS),
        user_agent=more.get(names.USER_AGENT),
        schema=schema if 0 <= schema < 2**15 else 0,
        kind=tags[names.KIND],
        card=tags.get("tailspan.card"),
        variant=tags.get("tailspan.variant"),
        claim=more.get(names.CLAIM),
        polled=more.get(names.POLL) is True,
        by_proxy=more.get(names.BY_PROXY) is True,
    )


def test_a_span_is_one_row_with_the_closed_list_of_tags(influxd: Influxd, collector: Collector) -> None:
    of_resource = {"service_name": "dashboard", "deployment_environment_name": "production", "host_name": "box"}
    everything = {**EVERY_TAG, **FIELDS, "http.request.header.cookie": ["secret"], "url.query": "secret", "other": 1}
    one = span(1, {key: value for key, value in everything.items() if key not in ("service.name",)})
    one.parent_span_id = bytes(7) + b"\1"
    one.name, one.status.message, one.status.code = "GET /?secret", "secret", Status.STATUS_CODE_ERROR
    send(collector.endpoint, [one], **of_resource)
    arrived(influxd, 1, collector)
    assert rows(influxd) == {
        id_of(one): Row(
            one.start_time_unix_nano,
            {key: "false" if value is False else str(value) for key, value in EVERY_TAG.items()},
            {
                "trace_state": id_of(one),
                "parent_span_id": "0000000000000001",
                "duration_nano": "5000000",
                "end_time_unix_nano": str(one.end_time_unix_nano),
                "attributes": rows(influxd)[id_of(one)].fields["attributes"],
            },
        )
    }
    assert rows(influxd)[id_of(one)].attributes == FIELDS


KINDS: Final[list[tuple[dict[str, Any], dict[str, Any], bool]]] = [
    (OURS, {}, True),
    (OURS | {"tailspan.kind": "view"}, {}, True),
    ({"tailspan.kind": "heartbeat"}, {"kind": "SPAN_KIND_INTERNAL"}, True),
    ({"tailspan.kind": "probe"}, {"kind": "SPAN_KIND_INTERNAL"}, False),
    ({"tailspan.kind": 5}, {}, False),
    (FOREIGN, {}, True),
    ({"http.method": "GET"}, {}, True),
    ({"rpc.system": "grpc"}, {}, False),
    (FOREIGN, {"kind": "SPAN_KIND_INTERNAL"}, False),
    (FOREIGN, {"kind": "SPAN_KIND_CLIENT"}, False),
    (OURS, {"trace_id": bytes(16)}, False),
    (OURS, {"span_id": bytes(8)}, False),
    (OURS, {"start_time_unix_nano": 0}, False),
    (OURS, {"end_time_unix_nano": 1}, False),
    (OURS, {"end_time_unix_nano": 2**63}, False),
    (OURS, {"end_time_unix_nano": START_NS + 2 * 3600 * 10**9}, False),
]


def test_requests_views_and_heartbeats_are_kept_and_all_else_is_counted(influxd: Influxd, collector: Collector) -> None:
    sent = []
    for number, (attributes, changed, _) in enumerate(KINDS, 1):
        one = span(number, attributes)
        for field, value in changed.items():
            setattr(one, field, OtlpSpan.SpanKind.Value(value) if field == "kind" else value)
        sent.append(one)
    send(collector.endpoint, sent)
    arrived(influxd, 3, collector)
    kept = [id_of(one) for one, (*_, keep) in zip(sent, KINDS, strict=True) if keep]
    assert sorted(rows(influxd)) == sorted(kept)
    dropped = {
        name: collector.metric("otelcol_processor_filter_spans_filtered", filter=f"filter/{name}")
        for name in ("kept", "sound")
    }
    assert dropped == {"kept": 5, "sound": 6}


ANA: Final = "ana@example.com"
LOGIN_HEADER: Final = "http.request.header.tailscale-user-login"
FORWARDED: Final = "http.request.header.x-forwarded-for"
REAL: Final = "http.request.header.x-real-ip"
CALLERS: Final[list[tuple[dict[str, Any], str | None, str | None]]] = [  # a span, whose it is, from which address
    (SERVE, ANA, "100.64.0.7"),
    (
        {
            **FOREIGN,  # as Node and Python write it
            "http.request.header.tailscale_user_login": [ANA],
            "http.request.header.x_forwarded_for": ["100.64.0.99, 100.64.0.7"],
            "client.address": "100.64.0.99",
        },
        ANA,
        "100.64.0.7",
    ),
    (SERVE | {LOGIN_HEADER: ANA, FORWARDED: "fd7a:115c:a1e0::7"}, ANA, "fd7a:115c:a1e0::7"),
    (SERVE | {"network.peer.address": "::ffff:127.0.0.1"}, ANA, "100.64.0.7"),
    (SERVE | {"network.peer.address": None, "net.peer.ip": "::1"}, ANA, "100.64.0.7"),
    (SERVE | {"network.peer.address": "192.0.2.1"}, None, None),  # the header is forged
    (SERVE | {"network.peer.address": "100.64.0.9"}, None, "100.64.0.9"),  # forged by a tailnet peer
    (SERVE | {"network.peer.address": "::ffff:100.64.0.9"}, None, "100.64.0.9"),
    (SERVE | {"network.peer.address": None}, None, None),
    (SERVE | {"network.peer.address": ["127.0.0.1"]}, None, None),
    (FOREIGN | {"client.address": "100.64.0.7"}, None, None),  # perhaps the left-most X-Forwarded-For
    # a login without the tailnet address that Serve sends with it
    (SERVE | {FORWARDED: ["100.64.0.7, 203.0.113.5"]}, None, None),
    (SERVE | {FORWARDED: ["100.64.0.7,"], "client.address": "100.64.0.7"}, None, None),
    (SERVE | {FORWARDED: ["100.64.0.7", "100.64.0.9"]}, None, None),
    (SERVE | {FORWARDED: None, "client.address": "100.64.0.7"}, None, None),
    (SERVE | {FORWARDED: ["no address"]}, None, None),
    # two callers, one of whom the caller wrote
    (SERVE | {REAL: ["100.64.0.9"], "client.address": "100.64.0.7"}, None, None),
    (SERVE | {FORWARDED: ["100.64.0.9, 100.64.0.7"], "http.request.header.x_real_ip": ["100.64.0.9"]}, None, None),
    (SERVE | {REAL: "no address"}, None, None),
    (SERVE | {REAL: ["100.64.0.7"]}, ANA, "100.64.0.7"),
    (SERVE | {REAL: ["::ffff:100.64.0.7"], FORWARDED: ["::ffff:100.64.0.7"]}, ANA, "100.64.0.7"),
    (SERVE | {REAL: ["127.0.0.1"]}, ANA, "100.64.0.7"),  # nginx's, to which Serve came
    (SERVE | {REAL: [5]}, ANA, "100.64.0.7"),
    (SERVE | {REAL: ""}, ANA, "100.64.0.7"),
    (SERVE | {REAL: ["100.64.0.9"], FORWARDED: None}, ANA, "100.64.0.9"),
    (SERVE | {REAL: ["127.0.0.1"], FORWARDED: None, "client.address": "100.64.0.7"}, None, None),
    (SERVE | {REAL: ["100.64.0.9"], "network.peer.address": "192.0.2.1"}, None, None),
    (SERVE | {LOGIN_HEADER: [ANA, "leo@example.com"]}, None, "100.64.0.7"),
    (SERVE | {LOGIN_HEADER: "ana@example.com,leo@example.com"}, None, "100.64.0.7"),
    (SERVE | {LOGIN_HEADER: ["=?utf-8?q?ana?="]}, None, "100.64.0.7"),
    (SERVE | {LOGIN_HEADER: ["ana\nleo"]}, None, "100.64.0.7"),
    (SERVE | {LOGIN_HEADER: [5]}, None, "100.64.0.7"),
    (SERVE | {LOGIN_HEADER: []}, None, "100.64.0.7"),
    (FOREIGN | {"user.name": "ceo@example.com", "tailscale.node": "x", "tailscale.address": "100.64.0.7"}, None, None),
    (FOREIGN | {"tailspan.caller": "person", "tailspan.page": "/x", "tailspan.vouched": True}, None, None),
    ({**SERVE, "network.peer.address": "10.0.0.1", "tailspan.vouched": True}, None, None),
]
SHAPES: Final[list[tuple[dict[str, Any], dict[str, Any]]]] = [
    (
        {"http.method": "GET", "http.status_code": 200, "http.target": "/a?token=1", "http.user_agent": "curl"},
        {
            "http.request.method": "GET",
            "http.response.status_code": "200",
            "url.path": "/a",
            "user_agent.original": "curl",
        },
    ),
    ({"http.method": "GET", "http.url": "https://host:1/b?token=1#x"}, {"url.path": "/b"}),
    ({"http.request.method": "GET", "url.full": "https://host?token=1"}, {"url.path": None}),
    ({"http.request.method": "GET", "url.path": "/a\nb?token=1\nc"}, {"url.path": "/a b"}),
    ({"http.method": "BREW", "http.status_code": "418"}, {"http.request.method": "_OTHER"}),
    ({"http.method": "GET", "http.status_code": "204"}, {"http.response.status_code": "204"}),
    ({"http.method": "GET", "http.status_code": 99}, {"http.response.status_code": None}),
    ({"http.method": "GET", "http.status_code": 600}, {"http.response.status_code": None}),
    ({"http.method": "GET", "http.status_code": 200.0}, {"http.response.status_code": None}),
    ({"http.method": "GET", "http.target": "/missing/file"}, {"http.route": None, "tailspan.traffic": "api"}),
    ({"http.method": "GET", "url.path": "/static/app.JS"}, {"tailspan.traffic": "asset"}),
    ({"http.method": "GET", "url.path": "/healthz"}, {"tailspan.traffic": "health"}),
    ({"http.method": "GET", "url.path": "/metrics"}, {"tailspan.traffic": "health"}),
    ({"http.method": "GET", "url.path": "/analytics/mcp"}, {"tailspan.traffic": "agent"}),
    ({"http.method": "GET", "url.path": "/analytics/active"}, {"tailspan.traffic": "internal"}),
    ({"http.method": "GET", "http.route": "/" + "ü" * 2000}, {"http.route": "/" + "ü" * 511}),
    (OURS | {"user.name": ["ana"], "tailspan.page": 5, "http.route": b"x"}, {"user.name": None, "tailspan.page": None}),
    (OURS | {"tailscale.tags": ["tag:ci", "tag:prod"]}, {"tailscale.tags": "tag:ci,tag:prod"}),
    (OURS | {"tailspan.source": "", "tailspan.timed": "false"}, {"tailspan.source": "live", "tailspan.timed": None}),
]


def test_callers_of_other_services_are_who_their_proxy_vouches_for(influxd: Influxd, collector: Collector) -> None:
    spans = [span(number, attributes) for number, (attributes, *_) in enumerate(CALLERS, 1)]
    send(collector.endpoint, spans, user_name="ceo@example.com")
    arrived(influxd, len(spans), collector)
    found = rows(influxd)
    who = ("user.name", "tailscale.address", "tailspan.caller", "tailspan.identity.source")
    told = [tuple(found[id_of(one)].tags.get(name) for name in who) for one in spans]
    assert told == [
        (login, address, "person" if login else "unknown", "serve_header" if login else "none")
        for _, login, address in CALLERS
    ]
    assert {key: record(row) for key, row in found.items()} == read(body(spans, user_name="ceo@example.com"))


def test_spans_of_other_conventions_come_to_the_same_shape(influxd: Influxd, collector: Collector) -> None:
    spans = [span(number, attributes) for number, (attributes, _) in enumerate(SHAPES, 1)]
    send(collector.endpoint, spans, service_name=None, deployment_environment="staging")
    arrived(influxd, len(spans), collector)
    found = rows(influxd)
    told = [{**found[id_of(one)].tags, **found[id_of(one)].attributes} for one in spans]
    assert [{key: there.get(key) for key in wanted} for there, (_, wanted) in zip(told, SHAPES, strict=True)] == [
        wanted for _, wanted in SHAPES
    ]
    named = {"service.name": "unknown_service", "deployment.environment.name": "staging"}
    assert [there for there in told if not named.items() <= there.items()] == []
    content = body(spans, service_name=None, deployment_environment="staging")
    assert {key: record(row) for key, row in found.items()} == read(content)


def test_other_proxies_are_believed_where_the_environment_names_them(influxd: Influxd, start: Start) -> None:
    collector = start(TAILSPAN_COLLECTOR_PROXIES='"172.18.0.0/16", "127.0.0.1/32"')
    peers = ("172.18.0.5", "127.0.0.1", "172.19.0.5")
    send(collector.endpoint, [span(n, SERVE | {"network.peer.address": peer}) for n, peer in enumerate(peers, 1)])
    arrived(influxd, 3, collector)
    assert [row.tags.get("user.name") for _, row in sorted(rows(influxd).items())] == [ANA, ANA, None]


POISON: Final[dict[str, dict[str, Any]]] = {
    "a link without attributes": {"links": [OtlpSpan.Link(trace_id=b"1" * 16, span_id=b"1" * 8)]},
    "an event without name and attributes": {"events": [OtlpSpan.Event(time_unix_nano=START_NS)]},
    "a name of any kind": {"name": "\n\\" * 1000},
    "a status message": {"status": Status(message="\n" * 2**21)},
    "a trace state": {"trace_state": "\n\\"},
}
POISONED: Final[dict[str, dict[str, Any]]] = {
    "a newline": {"user.name": "ana\nspans x=1i"},
    "a tab": {"http.route": "/\t"},
    "NUL and DEL": {"tailscale.node": "\0\x7f"},
    "a backslash at the end": {"tailspan.page": "/a\\"},
    "a backslash where it is cut": {"tailspan.page": "x" * 1023 + "\\\\"},
    "a backslash, a space and a quote": {"tailspan.page": '/a\\ "b'},
    "only backslashes": {"tailspan.card": "\\\\\\"},
    "70,000 characters": {"user.name": "x" * 70_000},
    "a list of 70,000 characters": {"user.name": ["x" * 70_000]},
    "every tag at its longest": {
        key: "\\,= " * 300 for key in EVERY_TAG if key not in ("tailspan.kind", "service.name")
    },
    "no character": {"user.name": ""},
    "characters of all planes": {"user.name": "zoë 漢字 🦊 \u2028 \u202e \ufffd \ufeff"},
    "a map": {"tailscale.node": {"a": {"b": [1.5, "x"]}}},
    "bytes": {"tailscale.node": b"\xff\n"},
    "NaN": {"tailspan.visible_ms": float("nan"), "other": float("nan"), "tailscale.tags": [float("nan")]},
    "infinity": {"http.response.status_code": float("inf")},
    "the largest number": {"tailspan.schema": 2**63 - 1, "http.response.status_code": -(2**63)},
    "a megabyte beside": {"other": "x" * 2**20},
    "ten thousand attributes": {f"attribute.{number}": number for number in range(10_000)},
    "the names of fields": {"span.name": "\n", "trace_id": "\n", "span_id": "\n", "attributes": "x", "trace_state": 5},
}


def test_a_poisoned_span_costs_no_other_and_is_kept_itself(influxd: Influxd, collector: Collector) -> None:
    bad: list[tuple[dict[str, Any], dict[str, Any]]] = [(OURS, fields) for fields in POISON.values()]
    bad += [(base | changed, {}) for changed in POISONED.values() for base in (OURS, FOREIGN)]
    spans = []
    for number, (attributes, fields) in enumerate(bad):
        batch = [span(number * 100 + place) for place in range(1, 101)]
        batch[50] = span(number * 100 + 51, attributes, **fields)
        spans += batch
        send(collector.endpoint, batch)
    arrived(influxd, len(spans), collector)
    assert sorted(ids(influxd)) == sorted(map(id_of, spans))
    assert collector.metric("otelcol_exporter_send_failed_spans") == 0


def test_text_that_is_no_utf_8_costs_nothing(influxd: Influxd, collector: Collector) -> None:
    bad = span(2, OURS | {"user.name": "NOT-UTF8", "url.path": "/NOT-UTF8"})
    content = body([span(1), bad, span(3)], service_name="NOT-UTF8").replace(b"NOT-UTF8", b"\xff\xfe\xc3(ok!!")
    assert post(collector.endpoint, content).status_code == 200
    arrived(influxd, 3, collector)
    found = rows(influxd)
    assert {row.tags["service.name"] for row in found.values()} == {"   (ok!!"}
    assert (found[id_of(bad)].tags["user.name"], found[id_of(bad)].attributes["url.path"]) == ("   (ok!!", "/   (ok!!")


CHARACTERS: Final = (*"\n\t\0\\\x7f\x85\u2028\ufffd\ufeff🦊ü\"',= ${%#/a", "\\ ", '"')
LENGTHS: Final = (0, 1, 2, 5, 20, 300, 1023, 1024, 1025, 3000)
NUMBERS: Final = (0, -1, 200, 2**63 - 1, -(2**63), float("nan"), float("-inf"), 1e300, True, False)
NAMES: Final = (*EVERY_TAG, *FIELDS, *otlp.WANTED, "http.target", "http.url", "url.full", "span.name", "x")


def hostile(dice: random.Random) -> Iterator[dict[str, Any]]:
    """Attributes of spans that nobody meant well."""
    words = ["".join(dice.choices(CHARACTERS, k=dice.choice(LENGTHS))) for _ in range(300)]
    while True:
        word = dice.choice(words)
        values: tuple[Any, ...] = (
            word,
            word,
            word,
            word,
            dice.choice(NUMBERS),
            word.encode(),
            [word],
            [],
            {},
            {"a": [float("nan")]},
        )
        base = dice.choice((OURS, OURS, FOREIGN, SERVE, {}, EVERY_TAG))
        changed = {key: dice.choice(values) for key in dice.sample(NAMES, dice.randrange(1, 12)) if key != names.TAGS}
        yield base | changed | ({names.KIND: dice.choice(("heartbeat", "view", "x", 5))} if dice.random() < 0.1 else {})


def test_hostile_spans_are_kept_as_the_embedded_store_reads_them_and_cost_no_other(
    influxd: Influxd, collector: Collector
) -> None:
    bad, wanted = hostile(random.Random(5)), dict[str, Span]()
    for first in range(1, 20_000, 1_000):  # 10,000 of them, each before a good one
        pairs = [(span(n, next(bad), name="\n", trace_state="\n"), span(n + 1)) for n in range(first, first + 1_000, 2)]
        content = body([one for pair in pairs for one in pair], deployment_environment="a\nb\\")
        wanted |= read(content)
        assert post(collector.endpoint, content).status_code == 200
    arrived(influxd, len(wanted), collector)
    assert len(wanted) > 15_000
    assert {key: record(row) for key, row in rows(influxd).items() if row.tags[names.KIND] != "heartbeat"} == wanted
    assert collector.metric("otelcol_exporter_send_failed_spans") == 0
    assert [line for line in collector.log.read_text("utf-8").splitlines() if "\terror\t" in line] == []


def test_spans_in_whole_milliseconds_do_not_overwrite_each_other(influxd: Influxd, collector: Collector) -> None:
    spans = [span(n, start_ns=START_NS + n // 20 * 10**6) for n in range(1, 10_001)]
    send(collector.endpoint, spans)
    arrived(influxd, len(spans), collector)
    found = rows(influxd)
    later = [found[id_of(one)].start_ns - one.start_time_unix_nano for one in spans]
    assert min(later) >= 0 and max(later) < 2**20
    assert {row.fields["duration_nano"] for row in found.values()} == {"5000000"}


def test_a_batch_delivered_three_times_is_there_once(influxd: Influxd, collector: Collector) -> None:
    spans = [span(n, {**OURS, "http.route": f"/{n}"}, start_ns=START_NS + n % 2) for n in range(1, 101)]
    for _ in range(3):
        send(collector.endpoint, spans)
    until(lambda: collector.metric("otelcol_exporter_sent_spans") == 300, "not all were sent", collector.said)
    assert sorted(ids(influxd)) == sorted(map(id_of, spans))


def test_each_process_has_one_heartbeat_whose_newest_beat_stays(influxd: Influxd, collector: Collector) -> None:
    beat = {"tailspan.kind": "heartbeat", "tailspan.source": "live", "tailspan.schema": 1, "http.route": None}
    for minute in (1, 2, 3):
        counts = {"tailspan.stopped": minute == 3, "tailspan.dropped": minute, "tailspan.open_requests": 5 - minute}
        spans = [span(n, beat | counts, start_ns=START_NS) for n in (1, 2)]  # of two processes, at the same moment
        for one in spans:
            one.end_time_unix_nano = START_NS + minute * 60 * 10**9
        send(collector.endpoint, spans)
    until(lambda: collector.metric("otelcol_exporter_sent_spans") == 6, "not all were sent", collector.said)
    found = rows(influxd)
    assert {key: (row.fields["duration_nano"], row.attributes) for key, row in found.items()} == {
        id_of(span(n)): (
            str(180 * 10**9),
            {"tailspan.stopped": True, "tailspan.dropped": 3, "tailspan.open_requests": 2, "tailspan.schema": 1},
        )
        for n in (1, 2)
    }
    assert [row.tags for row in found.values()] == [
        {"service.name": "dashboard", "tailspan.kind": "heartbeat", "tailspan.source": "live"}
    ] * 2


def test_with_the_token_switched_on_only_its_bearer_delivers(influxd: Influxd, start: Start) -> None:
    collector = start(CONFIG.replace("#token ", ""), TAILSPAN_COLLECTOR_TOKEN="a-token-of-the-tests")
    tokens: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer a-token-of-the-tests"},
    ]
    answers = [post(collector.endpoint, body([span(n)]), CLIENT, **given) for n, given in enumerate(tokens, 1)]
    assert [answer.status_code for answer in answers] == [401, 401, 200]
    arrived(influxd, 1, collector)
    assert ids(influxd) == [id_of(span(3))]


def test_with_tls_switched_on_spans_come_encrypted_only(influxd: Influxd, start: Start, tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    made = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    names_ = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    subprocess.run(["openssl", *made, *names_, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    collector = start(CONFIG.replace("#tls ", ""), TAILSPAN_COLLECTOR_CERT=certificate, TAILSPAN_COLLECTOR_KEY=key)
    with suppress(httpx.TransportError):  # it may hang up before its answer is read
        assert post(collector.endpoint, body([span(1)])).status_code == 400
    with httpx.Client(trust_env=False, verify=ssl.create_default_context(cafile=certificate)) as client:
        assert post(collector.endpoint.replace("http", "https"), body([span(2)]), client).status_code == 200
    arrived(influxd, 1, collector)
    assert ids(influxd) == [id_of(span(2))]


def test_a_second_pipeline_brings_the_same_spans_to_tailspan_serve(
    influxd: Influxd, start: Start, tmp_path: Path
) -> None:
    url, token = f"http://127.0.0.1:{free_port()}", "a-token-of-the-tests"
    settings = {"TAILSPAN_LISTEN": url.removeprefix("http://"), "TAILSPAN_DB": str(tmp_path / "db")}
    server = Engine(
        *(sys.executable, "-m", "tailspan", "serve"),
        log=tmp_path / "serve.log",
        ready=f"{url}/healthz",
        environment={**settings, "TAILSPAN_TOKEN": token, "TS_SOCKET": "/nonexistent", "TAILSPAN_USERSPACE": "false"},
    )
    collector = start(more=(ROOT / "collector-serve.yaml").read_text("utf-8"), TAILSPAN_URL=url, TAILSPAN_TOKEN=token)
    now_ns = time.time_ns() // 10**6 * 10**6 - 60 * 10**9
    spans = [span(1, start_ns=now_ns), span(2, SERVE, start_ns=now_ns)]
    send(collector.endpoint, spans)
    arrived(influxd, 2, collector)
    server.start()  # what it missed waits for it
    try:
        asked = f"{url}/analytics/access-logs?service=dashboard"
        until(lambda: len(httpx.get(asked).json()["logs"]) == 2, "not both arrived", server.said)
        logs = httpx.get(asked).json()["logs"]
    finally:
        server.end()
    told = {f"{log['trace_id']}-{log['span_id']}": (log["timestamp"], log["user"]) for log in logs}
    began = datetime.fromtimestamp(now_ns / 10**9, UTC).strftime("%FT%T.%f")[:-3] + "Z"
    assert told == {id_of(one): (began, ANA) for one in spans}


def test_each_key_of_the_environment_is_documented_with_its_default() -> None:
    both = CONFIG + (ROOT / "collector-serve.yaml").read_text("utf-8")
    keys = dict(re.findall(r"\$\{env:(\w+)(?::-([^}]*))?\}", both))
    documented = (ROOT / "docs/collector.md").read_text("utf-8").partition("comes from the environment:")[2]
    table = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\|", documented.partition("To want a bearer")[0], re.M)
    assert dict(table) == keys


def test_the_configuration_speaks_of_the_same_names_and_paths_as_the_code() -> None:
    [kept] = re.findall(r"keep_keys\(span\.attributes, \[(.*?)\]\)", CONFIG, re.DOTALL)
    stored = set(re.findall(r'"([^"]+)"', kept))
    of_resource = {names.SERVICE, names.ENVIRONMENT}
    assert stored | of_resource == {*EVERY_TAG, *FIELDS} | {
        *(names.STOPPED, names.FORGED, names.FORGED_KINDS, names.UNPROVEN, names.DROPPED, names.OPEN_REQUESTS)
    }
    dimensions = re.findall(
        r"^      - ([a-z._]+)$", CONFIG.partition("span_dimensions:")[2].partition("sending")[0], re.M
    )
    assert dimensions == list(EVERY_TAG)
    assert ASSET_ENDING.pattern.replace("\\", "\\\\") + "$" in CONFIG
    [methods] = re.findall(r"\^\(([A-Z|]+)\)\$", CONFIG)
    assert set(methods.split("|")) == names.METHODS
