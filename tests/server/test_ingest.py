"""`POST /v1/traces`, as services and collectors meet it."""

import gzip
import json
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.testclient import TestClient

from tailspan.ingest import otlp
from tests.server.conftest import Serving
from tests.server.spans import ANA, PROTOBUF, beat, export, protobuf, span

JSON = {"Content-Type": "application/json"}


def logs(client: TestClient, **params: Any) -> list[dict[str, Any]]:
    return list(client.get("/analytics/access-logs", params=params).json()["logs"])


def received(client: TestClient) -> dict[str, Any]:
    return dict(client.get("/healthz").json()["received"])


EVERYTHING = export(
    span(1, parentSpanId="00000000000000aa", took_ms=42.5),
    span(
        2,
        {**ANA, "tailspan.timed": False, "tailscale.tags": ["tag:ci", "tag:prod"], "tailspan.caller": "tagged"},
        ago=1,
    ),
    environment="production",
)


def test_json_protobuf_and_gzip_of_one_message_are_the_same_rows(serving: Serving, database: Any) -> None:
    packed = {"Content-Encoding": "gzip"}
    answers = []
    for body, headers in (
        (protobuf(EVERYTHING), PROTOBUF),
        (gzip.compress(protobuf(EVERYTHING)), PROTOBUF | packed),
        (json.dumps(EVERYTHING).encode(), JSON),
        (gzip.compress(json.dumps(EVERYTHING).encode()), {"Content-Type": "application/json; charset=utf-8"} | packed),
    ):
        with serving() as client:
            assert client.post("/v1/traces", content=body, headers=headers).status_code == 200
            answers.append(logs(client))
        database.unlink()
    assert answers == [answers[0]] * 4
    assert answers[0] == [
        {
            "timestamp": "2026-03-01T12:00:00.000Z",
            "user": "ana@example.com",
            "device": "ana-laptop",
            "ip": "100.64.0.7",
            "endpoint": "/dashboard",
            "method": "GET",
            "status": 200,
            "response_time_ms": 42.5,
            "service": "dashboard",
            "environment": "production",
            "traffic": "page",
            "page": "/dashboard",
            "path": "/dashboard",
            "caller": "person",
            "full_name": "Ana",
            "tags": None,
            "device_id": "n1CNTRL",
            "device_guess": None,
            "claim": None,
            "identity_source": "serve_header",
            "proven": True,
            "source": "live",
            "trace_id": "0" * 31 + "1",
            "span_id": "0" * 15 + "1",
        },
        {
            **answers[0][0],
            "timestamp": "2026-03-01T11:59:59.000Z",
            "response_time_ms": None,
            "caller": "tagged",
            "tags": "tag:ci,tag:prod",
            "trace_id": "0" * 31 + "2",
            "span_id": "0" * 15 + "2",
        },
    ]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", PROTOBUF, 200),
        (b"{}", JSON, 200),
        (b'{"futureField": [1]}', JSON, 200),
        (b"\xff\xff", PROTOBUF, 400),
        (b"{", JSON, 400),
        (b"[]", JSON, 400),
        (b'{"resourceSpans": 1}', JSON, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}', JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"not gzip", PROTOBUF | {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(b"{}", mtime=0)[:-4], JSON | {"Content-Encoding": "gzip"}, 400),
        (b"", PROTOBUF | {"Content-Encoding": "br"}, 415),
        (b"", {"Content-Type": "text/plain"}, 415),
        (b"", {}, 415),
        (b"\0" * (otlp.MAX_BYTES + 1), PROTOBUF, 413),
        (gzip.compress(b"\0" * (otlp.MAX_BYTES + 1), mtime=0), PROTOBUF | {"Content-Encoding": "gzip"}, 413),
    ],
)
def test_each_body_gets_the_code_of_the_specification(
    client: TestClient, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = client.post("/v1/traces", content=body, headers=headers)
    wanted = "application/json" if "json" in headers.get("Content-Type", "") else "application/x-protobuf"
    assert (answer.status_code, answer.headers["content-type"]) == (status, wanted)
    if status != 200 and wanted == "application/json":
        assert {"code": answer.json()["code"], "has": bool(answer.json()["message"])} == {"code": 3, "has": True}


def test_a_body_sent_in_pieces_is_cut_off_at_the_limit(client: TestClient) -> None:
    pieces = (b"\0" * 2**20 for _ in range(100))
    assert client.post("/v1/traces", content=pieces, headers=PROTOBUF).status_code == 413


@pytest.mark.parametrize(
    ("old", "shown"),
    [
        ({"http.method": "GET", "http.target": "/a?secret=1"}, {"path": "/a"}),
        ({"http.method": "GET", "http.url": "https://host/b?secret=1#x"}, {"path": "/b"}),
        ({"http.method": "BREW", "http.status_code": 418}, {"method": "_OTHER", "status": 418}),
        ({"http.method": "GET", "http.status_code": "204"}, {"status": 204}),
        ({"http.method": "GET", "http.client_ip": "10.0.0.1", "net.sock.peer.addr": "127.0.0.1"}, {"ip": "10.0.0.1"}),
        ({"http.method": "GET", "http.client_ip": "10.0.0.1", "net.sock.peer.addr": "10.0.0.2"}, {"ip": "10.0.0.2"}),
        ({"http.method": "GET", "net.sock.peer.addr": "10.0.0.2"}, {"ip": "10.0.0.2"}),
        ({"http.method": "GET", "url.path": "/static/app.js"}, {"traffic": "asset"}),
        ({"http.method": "GET", "url.path": "/health"}, {"traffic": "health"}),
        ({"http.method": "GET", "user.name": "ceo@example.com"}, {"user": None, "caller": "unknown"}),
        (
            {"http.method": "GET", "tailscale.node": "x", "tailspan.caller": "person"},
            {"device": None, "caller": "unknown"},
        ),
        ({"http.method": "GET", "http.target": "/a?next=http://host/b"}, {"path": "/a"}),
        ({"http.method": "GET", "url.path": "/\0\n" + "ü" * 2000}, {"path": "/  " + "ü" * 510}),  # 1,024 bytes
        ({"http.method": "GET", "url.path": "/a\\b\\"}, {"path": "/a/b/"}),
    ],
)
def test_a_span_of_foreign_instrumentation_is_a_request_of_nobody(
    client: TestClient, old: dict[str, Any], shown: dict[str, Any]
) -> None:
    client.post("/v1/traces", json=export(span(1, old), service=None))
    [log] = logs(client)
    assert {key: log[key] for key in shown} == shown
    assert (log["service"], log["source"], log["identity_source"]) == ("unknown_service", "live", "none")


SERVE = {
    "http.request.method": "GET",
    "network.peer.address": "127.0.0.1",
    "http.request.header.tailscale-user-login": ["ana@example.com"],
    "http.request.header.x-forwarded-for": ["100.64.0.7"],
}
ANA_BY_HEADER = {
    "user": "ana@example.com",
    "ip": "100.64.0.7",
    "caller": "person",
    "identity_source": "serve_header",
    "proven": False,
}
NOBODY = {"user": None, "ip": "100.64.0.7", "caller": "unknown", "identity_source": "none"}


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({}, ANA_BY_HEADER),
        ({"http.request.header.tailscale-user-login": "ana@example.com"}, ANA_BY_HEADER),
        (
            {
                "http.request.header.tailscale-user-login": None,
                "http.request.header.tailscale_user_login": ["ana@example.com"],
                "http.request.header.x-forwarded-for": None,
                "http.request.header.x_forwarded_for": ["100.64.0.99, 100.64.0.7"],
            },
            ANA_BY_HEADER,
        ),
        ({"network.peer.address": "::ffff:127.0.0.1"}, ANA_BY_HEADER),
        ({"network.peer.address": None, "net.peer.ip": "::1"}, ANA_BY_HEADER),
        ({"network.peer.address": "100.64.0.7"}, NOBODY),
        ({"network.peer.address": "::ffff:100.64.0.7"}, NOBODY),
        ({"network.peer.address": None, "client.address": "100.64.0.7"}, NOBODY),
        ({"http.request.header.tailscale-user-login": ["ana@example.com", "leo@example.com"]}, NOBODY),
        ({"http.request.header.tailscale-user-login": ["=?utf-8?q?ana?="]}, NOBODY),
        ({"http.request.header.tailscale-user-login": ["ana example"]}, NOBODY),
        ({"http.request.header.tailscale-user-login": []}, NOBODY),
        ({"http.request.header.x-forwarded-for": None, "client.address": "100.64.0.7"}, NOBODY),  # not by Serve
        ({"http.request.header.x-forwarded-for": ["203.0.113.5"]}, NOBODY | {"ip": "203.0.113.5"}),
        ({"http.request.header.x-real-ip": ["100.64.0.8"], "client.address": "100.64.0.7"}, NOBODY),
        ({"http.request.header.x_real_ip": ["100.64.0.7"]}, ANA_BY_HEADER),
    ],
)
def test_of_a_foreign_span_only_what_its_proxy_told_is_believed(
    client: TestClient, changed: dict[str, Any], shown: dict[str, Any]
) -> None:
    client.post("/v1/traces", json=export(span(1, SERVE | changed)))
    [log] = logs(client)
    assert {key: log[key] for key in shown} == shown


def test_a_named_proxy_is_believed_in_the_place_of_loopback(serving: Serving) -> None:
    peers = ("172.18.0.5", "127.0.0.1")
    with serving(trusted_peers=(ip_network("172.18.0.0/16"),)) as client:
        spans = [span(n, SERVE | {"network.peer.address": peer}, ago=n) for n, peer in enumerate(peers, 1)]
        client.post("/v1/traces", json=export(*spans))
        assert [log["user"] for log in logs(client)] == ["ana@example.com", None]


def test_an_address_that_a_foreign_span_claims_names_no_device(client: TestClient) -> None:
    forwarded = {"http.request.header.x-forwarded-for": ["100.64.0.7, 203.0.113.5"], "client.address": "100.64.0.7"}
    anonymous = {key: value for key, value in SERVE.items() if "login" not in key}
    client.post("/v1/traces", json=export(span(1, ago=2), span(2, anonymous | forwarded)))
    newest, _ = logs(client)
    assert (newest["device"], newest["user"], newest["ip"]) == (None, None, "203.0.113.5")


def test_foreign_spans_that_differ_in_their_path_only_differ_in_their_traffic(client: TestClient) -> None:
    paths = ("/static/app.js", "/prices", "/healthz")
    client.post("/v1/traces", json=export(*(span(n, SERVE | {"url.path": path}) for n, path in enumerate(paths, 1))))
    assert {log["path"]: log["traffic"] for log in logs(client)} == {
        "/static/app.js": "asset",
        "/prices": "api",
        "/healthz": "health",
    }


def test_a_value_of_a_wrong_type_is_not_taken_for_the_right_one_of_the_span_before(client: TestClient) -> None:
    wrong = {**ANA, "tailspan.identity.proven": 0, "http.route": ["/dashboard"], "http.response.status_code": True}
    right = {**ANA, "tailspan.identity.proven": False}
    spans = [span(n, attributes) for n, attributes in enumerate((right, wrong, right), 1)]
    client.post("/v1/traces", json=export(*spans))
    told = [(log["proven"], log["endpoint"], log["status"]) for log in logs(client)]
    assert sorted(told, key=str) == [(False, "/dashboard", 200), (False, "/dashboard", 200), (True, "/dashboard", None)]


def test_the_old_name_of_the_environment_is_read(client: TestClient) -> None:
    message = export(span(1), environment="staging")
    message["resourceSpans"][0]["resource"]["attributes"][1]["key"] = "deployment.environment"
    client.post("/v1/traces", json=message)
    assert [log["environment"] for log in logs(client)] == ["staging"]


def test_spans_that_are_no_requests_are_counted_and_not_reported_as_rejected(client: TestClient) -> None:
    answer = client.post(
        "/v1/traces", json=export(span(1, kind=1), span(2, {}), span(3, {"http.request.method": "GET"}, kind=3))
    )
    assert (answer.status_code, answer.json()) == (200, {})
    assert received(client) == {
        "stored": 1,  # our own kind says request, whatever its span kind
        "heartbeats": 0,
        "duplicates": 0,
        "ignored": {"not a request": 2},
        "rejected": {},
    }


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"startTimeUnixNano": "0"}, "no start time"),
        ({"endTimeUnixNano": "0"}, "ended before it started"),
        ({"endTimeUnixNano": str(2**64 - 1)}, "more than ten minutes in the future: set the service's clock"),
        ({"traceId": ""}, "ids of the wrong length"),
        ({"traceId": "0" * 32}, "ids of zeros only"),
        ({"spanId": "0" * 16}, "ids of zeros only"),
        ({"spanId": "00aa"}, "ids of the wrong length"),
        ({"parentSpanId": "00aa"}, "ids of the wrong length"),
    ],
)
def test_a_wrong_span_is_rejected_with_its_reason_and_the_others_are_kept(
    client: TestClient, wrong: dict[str, str], reason: str
) -> None:
    answer = client.post("/v1/traces", json=export(span(1), span(2) | wrong))
    assert answer.json() == {"partialSuccess": {"rejectedSpans": "1", "errorMessage": f"1 {reason}"}}
    assert received(client)["rejected"] == {reason: 1}
    assert [log["trace_id"] for log in logs(client)] == ["0" * 31 + "1"]


def test_a_protobuf_delivery_is_told_in_protobuf_what_was_rejected(client: TestClient) -> None:
    answer = client.post("/v1/traces", content=protobuf(export(span(1, startTimeUnixNano="0"))), headers=PROTOBUF)
    assert ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans == 1


def test_a_span_delivered_twice_counts_once(client: TestClient) -> None:
    first, second = export(span(1), span(2, ago=9)), export(span(2, ago=9), span(3, ago=2), span(3, ago=2))
    for message in (first, first, second):
        client.post("/v1/traces", json=message)
    assert sorted(log["trace_id"][-1] for log in logs(client)) == ["1", "2", "3"]
    assert received(client) == {"stored": 3, "heartbeats": 0, "duplicates": 4, "ignored": {}, "rejected": {}}


def test_a_heartbeat_replaces_the_stored_one_only_when_it_ends_later(client: TestClient) -> None:
    for ago, dropped in ((45, 1), (15, 3), (30, 2)):
        client.post(
            "/v1/traces", json=export(beat(1, ago=ago, length=75 - ago, dropped=dropped, open_requests=dropped))
        )
    kinds = {"forged.kinds": "bypass=2,untrusted=1"}
    last = beat(1, ago=5, length=70, stopped=True, dropped=5, forged=3, **kinds)
    both = export(beat(1, ago=10, length=65, dropped=4, forged=1), last)
    [source] = client.get("/healthz").json()["sources"]
    assert [(one["last_heartbeat"], one["dropped"]) for one in source["services"]] == [("2026-03-01T11:59:45.000Z", 3)]
    client.post("/v1/traces", json=both)
    [source] = client.get("/healthz").json()["sources"]
    assert source["services"] == [
        {
            "service": "dashboard",
            "environment": None,
            "last_request": None,
            "last_heartbeat": "2026-03-01T11:59:55.000Z",
            "stopped": True,
            "forged": 3,
            "forged_kinds": {"bypass": 2, "untrusted": 1},
            "unproven": 0,
            "dropped": 5,
            "open_requests": 0,
        }
    ]


def test_everything_is_still_there_after_a_restart(serving: Serving) -> None:
    with serving() as client:
        client.post("/v1/traces", json=export(span(1), span(2), beat(3)))
        before = client.get("/analytics/access-logs").json()
    with serving() as client:
        client.post("/v1/traces", json=export(span(1), beat(3)))
        assert client.get("/analytics/access-logs").json() == before
        client.post("/v1/traces", json=export(span(4, {**ANA, "http.route": "/new"}, ago=5)))
        assert [log["endpoint"] for log in logs(client)] == ["/dashboard", "/dashboard", "/new"]


def test_what_is_older_than_the_retention_is_deleted_when_the_server_starts(serving: Serving) -> None:
    with serving() as client:
        old = export(
            span(1, ago=8 * 86400), beat(2, ago=8 * 86400), span(3, {**ANA, "http.route": "/kept"}, ago=6 * 86400)
        )
        client.post("/v1/traces", json=old)
    with serving(retention_days=7) as client:
        for _ in range(1000):  # it happens beside the first answers
            if not client.get("/analytics/access-logs", params={"hours": 168}).json()["sources"][0]["services"][0][
                "last_heartbeat"
            ]:
                break
        assert [log["endpoint"] for log in logs(client, hours=168)] == ["/kept"]
        client.post("/v1/traces", json=export(span(4)))  # what it remembered of the deleted is forgotten, too
        assert [log["endpoint"] for log in logs(client, hours=168)] == ["/dashboard", "/kept"]


BODIES = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda tail: protobuf(EVERYTHING) + tail),
    st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=4)).map(
        lambda cut: protobuf(EVERYTHING)[: cut[0]] + cut[1] + protobuf(EVERYTHING)[cut[0] + len(cut[1]) :]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["resourceSpans", "scopeSpans", "spans", "resource", "attributes", "key", "value", "traceId"]
                ),
                inner,
                max_size=3,
            )
        ),
    ).map(lambda value: json.dumps(value).encode()),
)


@given(BODIES, st.sampled_from(["application/json", "application/x-protobuf"]), st.sampled_from(["", "gzip"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_makes_the_server_fail(client: TestClient, body: bytes, kind: str, encoding: str) -> None:
    content = gzip.compress(body) if encoding else body
    answer = client.post("/v1/traces", content=content, headers={"Content-Type": kind, "Content-Encoding": encoding})
    assert answer.status_code in (200, 400)
    assert client.get("/analytics/access-logs").status_code == 200


@given(
    st.lists(
        st.builds(
            lambda number, values, ago: span(number, {**ANA, **values}, ago=ago),
            st.integers(1, 2**64 - 1),
            st.dictionaries(
                st.sampled_from(sorted({*ANA, "tailspan.timed", "http.status_code", "tailspan.schema"})),
                st.text(max_size=20) | st.integers(-(2**63), 2**63 - 1) | st.booleans(),
                max_size=4,
            ),
            st.integers(-599, 3600),
        ),
        max_size=4,
    )
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_attribute_makes_the_server_fail(client: TestClient, spans: list[dict[str, Any]]) -> None:
    body = protobuf(export(*spans))
    assert ExportTraceServiceRequest.FromString(body)
    answer = client.post("/v1/traces", content=body, headers=PROTOBUF)
    assert answer.status_code == 200
    assert client.get("/analytics/access-logs").status_code == 200
    assert client.get("/analytics/active").status_code == 200


def test_a_store_that_cannot_write_asks_to_come_again(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as client:
        break_store(client, "DROP TABLE request CASCADE")
        answer = client.post("/v1/traces", json=export(span(1)))
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["code"]) == (503, "2", 14)


def break_store(client: TestClient, sql: str) -> None:
    """Damages the open database the way a bad disk would: from below."""
    app: Any = client.app
    app.state.inbox._store._connection.execute(sql)


def test_a_view_of_a_card_arrives_as_one(client: TestClient) -> None:
    seen = {**ANA, "tailspan.kind": "view", "tailspan.card": "Sistema", "tailspan.variant": "wide"}
    other = {**seen, "tailspan.card": "Precios", "tailspan.visible_ms": "long"}
    message = export(span(1, {**seen, "tailspan.visible_ms": 1500}, kind=1), span(2, other, kind=1), span(3))
    assert client.post("/v1/traces", json=message).json() == {}
    asked = "metrics=views,visible_ms&dimensions=card,variant&order=-visible_ms&hours=1"
    assert client.get(f"/analytics/query?{asked}").json()["rows"] == [
        {"card": "Sistema", "variant": "wide", "views": 1, "visible_ms": 1500},
        {"card": "Precios", "variant": "wide", "views": 1, "visible_ms": None},
    ]
    assert [log["trace_id"][-1] for log in logs(client)] == ["3"]  # a view is no request
