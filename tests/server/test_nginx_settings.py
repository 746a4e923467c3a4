"""The settings of the log that the server reads by itself, as it is started with them."""

import os
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from tailspan.config import Settings
from tailspan.errors import SettingError
from tailspan.follow import Follower
from tailspan.ingest.line import Origin
from tailspan.ingest.nginx import chosen
from tailspan.store.duckdb import DuckDB
from tailspan.witness import Witness
from tests.conftest import Launch
from tests.server.logs import combined
from tests.server.spans import NOW, NOW_NS


def test_it_is_told_the_environment_the_names_in_urls_and_the_time_zone(launch: Launch, tmp_path: Path) -> None:
    minute_ago = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    local = minute_ago.astimezone(ZoneInfo("Asia/Tokyo"))
    log = tmp_path / "access.log"
    log.write_text(combined(at=f"{local:%d/%b/%Y:%H:%M:%S}", referer="https://dash.example/boards"))
    server = launch(
        "tailspan",
        "serve",
        TAILSPAN_DB=f"{tmp_path / 't.duckdb'}",
        TAILSPAN_LISTEN="127.0.0.1:0",
        TS_SOCKET="/nowhere",
        TAILSPAN_NGINX_LOG=f"{log}*",
        TAILSPAN_NGINX_SERVICE="dashboard",
        TAILSPAN_NGINX_ENVIRONMENT="production",
        TAILSPAN_NGINX_HOST="other.example, dash.example",
        TAILSPAN_NGINX_ZONE="Asia/Tokyo",
    )
    line = _first(f"{server.line().split()[3]}/analytics/access-logs?environment=production")
    assert (line["service"], line["page"]) == ("dashboard", "/boards")
    assert datetime.fromisoformat(line["timestamp"]) == minute_ago
    assert server.end()[0] == 0


def _first(url: str) -> dict[str, Any]:
    with httpx.Client(trust_env=False, timeout=60) as client:
        while not (logs := client.get(url).json()["logs"]):
            time.sleep(0.05)
    return dict(logs[0])


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
@pytest.mark.parametrize("rights", [0o710, 0o700])
def test_a_folder_that_may_not_be_listed_is_told_with_what_mends_it(rights: int) -> None:
    """As Debian's own: with 0710 somebody may enter it, and sees no file there."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        logs = Path(folder) / "logs"
        logs.mkdir()
        logs.chmod(rights)
        os.chown(logs, 0, 65534)
        (logs / "access.log").write_text(combined())
        with closing(DuckDB(Path(folder) / "t.duckdb")) as store:
            witness = Witness(store, lambda: NOW, 400)
            follower = Follower((f"{logs}/access.log*",), witness, lambda: NOW_NS, chosen(None), Origin())
            os.setegid(65534)
            os.seteuid(65534)
            try:
                follower.step()
            finally:
                os.seteuid(0)
                os.setegid(0)
        state, message = follower.state
        mend = f"sudo setfacl -R -m u:nobody:rX -m d:u:nobody:rX {logs}"
        belongs = "It belongs to uid 0, group 65534; this is uid 65534."
        told = f"{logs}/access.log* cannot be read: Permission denied. {belongs} Allow it: {mend}"
        assert (state, message.removesuffix(" (it is in the package acl)")) == ("unreadable", told)


def test_a_time_zone_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError) as refused:
        Settings.read({"TAILSPAN_NGINX_ZONE": "Madrid"})
    assert str(refused.value) == "TAILSPAN_NGINX_ZONE is 'Madrid'. It is an IANA name such as Europe/Madrid."
