"""Views of cards as the page will send them, and a span for whatever else a test needs."""

from typing import Any

from tailspan.span import Span
from tests.server.spans import NOW_NS, SECOND


def view(number: int, card: str, *, ago: float = 60, **changed: Any) -> Span:
    """Ana saw a card."""
    return Span(
        trace_id=number.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        parent_id=None,
        start_ns=NOW_NS - int(ago * SECOND),
        duration_ns=None,
        path=None,
        **{
            "visible_ms": None,
            "open_ns": None,
            "service": "dashboard",
            "environment": None,
            "method": "_OTHER",
            "route": None,
            "status": None,
            "login": "ana@example.com",
            "full_name": "Ana",
            "node": "ana-laptop",
            "node_id": "n1CNTRL",
            "tags": None,
            "address": "100.64.0.7",
            "guess": None,
            "source": "page",
            "identity_source": "serve_header",
            "proven": True,
            "caller": "person",
            "traffic": "api",
            "page": "/dashboard",
            "client_address": None,
            "user_agent": None,
            "schema": 1,
            "kind": "view",
            "card": card,
            **changed,
        },
    )
