"""Whatever the OpenAPI document allows is answered as it says, and never by a mistake of ours."""

from typing import Any, cast

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.server.conftest import Serving
from tests.server.spans import LEO, beat, export, span
from tests.server.tailnet import STATUS
from tests.server.test_reports import CALL, POLL

TOKEN = "a-token-of-the-tests"
HEADERS = {"Host": "127.0.0.1", "Authorization": f"Bearer {TOKEN}"}
CHECKS: Any = (not_a_server_error, status_code_conformance, response_schema_conformance)

ALL = [
    "GET /analytics/access-logs",
    "GET /analytics/active",
    "GET /analytics/dashboard-usage",
    "GET /analytics/system-health-history",
    "GET /analytics/coverage",
    "GET /analytics/refresh",
    "GET /analytics/totals",
    "GET /analytics/query",
    "POST /analytics/query",
    "GET /analytics/tailnet/devices",
    "GET /analytics/tailnet/devices/{id}",
    "GET /analytics/tailnet/status",
    "GET /analytics/tailnet/who-is",
    "GET /analytics/people/{login}",
    "DELETE /analytics/people/{login}",
    "DELETE /analytics/logs/{service}",
    "GET /healthz",
]


def test_every_answer_is_one_that_the_document_promises(serving: Serving) -> None:
    with serving(token=TOKEN, status=str(STATUS)) as client:
        spans = (span(1), span(2, CALL, ago=60), span(3, LEO, ago=90), span(4, POLL), beat(5))
        client.post("/v1/traces", json=export(*spans), headers=HEADERS)
        schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, headers=HEADERS)
        asked = [_ask(cast(Any, found).ok()) for found in schema.get_all_operations()]
    assert sorted(asked) == sorted(ALL)


def _ask(operation: Any) -> str:
    @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def answered(case: Case[Any]) -> None:
        case.validate_response(case.call(headers=HEADERS), checks=CHECKS)

    answered()
    return str(operation.label)
