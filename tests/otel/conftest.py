"""A busy machine is no fault: names are waited for longer here than a service's spans would."""

import pytest
from tailspan_otel import annotate, describe, whois


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.name != "test_whois.py":
        monkeypatch.setattr(annotate, "WAIT_S", 3.0)
        monkeypatch.setattr(describe, "WAIT_S", 3.0)
        monkeypatch.setattr(whois, "PATIENCE_S", 6.0)
