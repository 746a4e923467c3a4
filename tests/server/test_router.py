"""The answers inside a host's own app, as docs/query.md shows it."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.server.spans import export, span

DOCS = Path(__file__).parents[2] / "docs" / "query.md"


@pytest.fixture
def host(database: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """An app made by the two lines of the documentation."""
    monkeypatch.setenv("TAILSPAN_DB", str(database))
    app = FastAPI()
    [snippet] = re.findall(r"```python\n(import tailspan\n.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    exec(compile(snippet, "docs/query.md", "exec"), {"app": app})
    return app


def local(app: FastAPI) -> TestClient:
    return TestClient(app, "http://127.0.0.1:8000", client=("127.0.0.1", 50000))


def test_two_lines_put_the_answers_into_a_hosts_app(host: FastAPI) -> None:
    with local(host) as client:
        assert client.post("/analytics/v1/traces", json=export(span(1))).status_code == 200
        question = {"metrics": "requests", "start": "2026-01-01", "end": "2026-12-31"}
        assert client.get("/analytics/query", params=question).json()["rows"] == [{"requests": 1}]
        assert {"/analytics/active", "/analytics/query"} <= client.get("/openapi.json").json()["paths"].keys()


def test_in_a_hosts_app_errors_have_the_same_shape_and_leave_its_own_alone(host: FastAPI) -> None:
    with local(host) as client:
        answer = client.get("/analytics/query", params={"metrics": "request"})
        assert (answer.status_code, answer.json()["error"]["fix"]) == (422, "Did you mean 'requests'?")
        answer = client.get("/analytics/access-logs", params={"hours": "0"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, "hours is '0'.")
        assert (
            client.post("/analytics/v1/traces", content=b"no", headers={"Content-Type": "text/plain"}).status_code
            == 415
        )
        assert client.get("/nowhere").json() == {"detail": "Not Found"}


def test_in_a_hosts_app_a_caller_from_elsewhere_needs_the_token_too(host: FastAPI) -> None:
    with TestClient(host, "http://127.0.0.1:8000", client=("100.64.0.9", 50000)) as client:
        for answer in (client.get("/analytics/active"), client.post("/analytics/v1/traces", json=export(span(1)))):
            assert answer.status_code == 401
