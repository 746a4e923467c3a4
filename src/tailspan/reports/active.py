"""Who is using it now: the people of the last five minutes."""

from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import BaseModel

from tailspan.query import Rows, ending, nanoseconds
from tailspan.reports import PERSON, Filters, Source, Sources, Window, ago, iso, window_of
from tailspan.span import Span

ACTIVE_FOR: Final = timedelta(minutes=5)


class ActiveUser(BaseModel):
    email: str
    device: str | None
    last_seen: str
    last_seen_at: str
    current_page: str | None
    full_name: str | None
    service: str
    device_guess: str | None


class Active(Window):
    active_users: list[ActiveUser]
    total_active: int
    sources: list[Source]


def active(of: Sources, params: Filters, now: datetime) -> Active:
    """People with a page, `api` call or view in the last five minutes, latest first; exactly five minutes ago is over.

    Polls do not count: an open tab is nobody. `current_page` is the newest page known among these.
    """
    newest = {span.login: span for span in _newest(of, params, now, *PERSON)}
    pages = {login: span.page for login, span in newest.items()}
    if None in pages.values():  # mostly it is not, and these questions are half of what a card's refresh costs
        pages |= {span.login: span.page for span in _newest(of, params, now, *PERSON, "page")}
    users = [_active_user(span, pages.get(login), now) for login, span in newest.items()]
    users.sort(key=lambda user: user.last_seen_at, reverse=True)
    window = window_of(ending(now, ACTIVE_FOR), of.meaning().zone)
    return Active(active_users=users, total_active=len(users), sources=of.told(now), **window)


def _newest(of: Sources, params: Filters, now: datetime, *known: str) -> list[Span]:
    """The newest activity of each person, with these known; the oldest first, so that the newest of two stays."""
    asked: dict[str, Any] = {"range": ending(now, ACTIVE_FOR), "labels": of.meaning(), "newest_per": "person"}
    filters = params.as_filters()
    called = of.store.run(Rows(**asked, filters={**filters, "traffic": ("page", "api")}, known=known))
    viewed = of.store.run(Rows(**asked, filters={**filters, "kind": ("view",)}, known=known))
    return sorted([*called, *viewed], key=lambda span: (span.start_ns, span.trace_id, span.span_id))


def _active_user(span: Span, page: str | None, now: datetime) -> ActiveUser:
    return ActiveUser(
        email=str(span.login),
        device=span.device,
        last_seen=ago((nanoseconds(now) - span.start_ns) / 1e9),
        last_seen_at=iso(span.start_ns),
        current_page=page,
        full_name=span.full_name,
        service=span.service,
        device_guess=span.guess,
    )
