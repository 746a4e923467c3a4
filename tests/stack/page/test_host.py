"""A dashboard as one finds them: cards without ids, a global `API`, all cached for a day, nginx with an allow-list."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.stack.engines import Engine, free_port, program, until
from tests.stack.page.conftest import Opens
from tests.stack.page.stage import HOST, Stage
from tests.stack.page.test_views import views

PAGE = """<!doctype html><html lang="es"><meta charset="utf-8"><title>Fábrica</title><link rel="icon" href="data:,">
<style>.card{background:white;border-radius:12px;padding:1.5rem;height:8rem}</style>
<div class="container">
<div class="card"><div class="card-header"><h2 class="card-title">Plan Optimizado 24h</h2></div></div>
<div class="card"><h3>Análisis Histórico SIAR (2000-2025)</h3></div>
<script type="module" src="/analytics/static/js/components/analytics-widget.js"></script>
</div>
<script>var API = "mine", Chart = "also mine";</script>
<script type="module" src="/analytics/static/js/components/card-views.js" data-service="factory"></script></html>"""
CONFIG = """daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; {user} events {{}}
http {{
  access_log off; types {{ text/html html; }}
  client_body_temp_path {folder}/t; proxy_temp_path {folder}/t; fastcgi_temp_path {folder}/t;
  uwsgi_temp_path {folder}/t; scgi_temp_path {folder}/t;
  server {{
    listen 127.0.0.1:{port};
    location = /dashboard {{ return 302 /static/index.html; }}
    location /static/ {{ root {folder}; add_header Cache-Control "public, max-age=86400"; }}
    location /analytics/ {{ proxy_pass {front}; proxy_set_header Host $http_host; }}
    location / {{ return 403; }}
  }}
}}"""


@pytest.fixture
def nginx(embedded: Stage, tmp_path: Path) -> Iterator[int]:
    """Its port."""
    folder, port = tmp_path / "nginx", free_port()
    (folder / "static").mkdir(parents=True)
    (folder / "t").mkdir()
    tmp_path.chmod(0o755)
    (folder / "static" / "index.html").write_text(PAGE)
    known = {"folder": folder, "port": port, "front": embedded.front, "user": "user root;"}
    (folder / "nginx.conf").write_text(CONFIG.format(**known))
    command = (program("nginx", "nginx"), "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log")
    ready = f"http://127.0.0.1:{port}/static/index.html"
    engine = Engine(*command, log=folder / "log", ready=ready)
    try:
        engine.start()
        yield port
    finally:
        engine.kill()


def test_two_tags_and_one_location_are_all_that_a_dashboard_behind_nginx_needs(
    embedded: Stage, opens: Opens, nginx: int
) -> None:
    assert httpx.get(f"http://127.0.0.1:{nginx}/analytic", trust_env=False).status_code == 403
    with opens(viewport={"width": 900, "height": 1200}) as ana:
        for _ in range(2):  # the second time it comes from the browser's cache
            ana.page.goto(f"http://ana.{HOST}:{nginx}/static/index.html")
            ana.page.wait_for_selector("analytics-widget:is([data-state=ok], [data-state=empty])")
            ana.page.wait_for_timeout(1500)
        assert ana.card()["title"] == "Analytics Última Semana"
        assert ana.page.evaluate("[API, Chart, document.querySelector('.container').lastElementChild.tagName]") == [
            "mine",
            "also mine",
            "ANALYTICS-WIDGET",
        ]
        ana.page.goto("about:blank")
        both = {"Plan Optimizado 24h": 2, "Análisis Histórico SIAR (2000-2025)": 2}
        until(lambda: {name: count for (name, _), (count, _) in views(embedded).items()} == both, "no views arrived")
