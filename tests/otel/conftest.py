"""A busy machine is no fault: names are waited for longer here than a service's spans would."""

import pytest
from tailspan_otel import describe, localapi, whois


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "WAIT_S", 5.0)
    monkeypatch.setattr(whois, "PATIENCE_S", 10.0)
    monkeypatch.setattr(localapi, "TIMEOUT_S", 5.0)
