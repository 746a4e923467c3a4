"""A busy machine is no fault: names are waited for longer here than a service's spans would."""

import pytest
from tailspan_otel import describe, localapi, whois


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.name != "test_whois.py":
        monkeypatch.setattr(describe, "WAIT_S", 5.0)
        monkeypatch.setattr(whois, "PATIENCE_S", 10.0)
        monkeypatch.setattr(localapi, "TIMEOUT_S", 5.0)
