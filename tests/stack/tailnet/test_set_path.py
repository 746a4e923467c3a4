"""docs/card.md's `tailscale serve --set-path` on a real tailnet: one path of a node is all that the page needs."""

import re
import shlex
from pathlib import Path
from typing import Final

from tailspan.page import CHECKOUT
from tests.stack.engines import ROOT
from tests.stack.tailnet.lab import Person, Tailnet, need_tun
from tests.stack.tailnet.network import HUB
from tests.stack.tailnet.services import Server

DOCUMENT: Final = ROOT / "docs" / "card.md"


def test_one_path_of_serve_gives_a_device_the_page_its_scripts_and_who_it_is(tailnet: Tailnet, tmp_path: Path) -> None:
    need_tun()
    owners = {"dashboard": Person("ops", "ops@example.com"), "phone": Person("leo", "leo@example.com", "Leo")}
    tailnet.join(owners, tun={"dashboard"})
    tailnet.settle()
    node, phone = tailnet.nodes["dashboard"], tailnet.nodes["phone"]
    settings = {"TAILSPAN_ALLOWED_HOSTS": f"{HUB},dashboard", "TS_SOCKET": str(node.socket)}
    server = Server(tmp_path / "server", settings, host="127.0.0.1")
    try:
        assert node.network
        with node.network:
            server.start()
        [line] = re.findall(r"`tailscale (serve [^`]+)`", DOCUMENT.read_text("utf-8"))
        serve, *rest = shlex.split(line.replace("http://127.0.0.1:8100", server.url))
        node.cli(serve, "--http=80", *rest)  # the lab has no certificates
        page, script, totals = (
            phone.get("dashboard", 80, f"/analytics/{path}")
            for path in ("", "static/js/components/analytics-widget.js", "totals")
        )
        assert (page.status, page.body) == (200, (CHECKOUT / "index.html").read_text("utf-8"))
        assert (script.status, totals.status) == (200, 200)
    finally:
        server.kill()
