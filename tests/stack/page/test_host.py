"""A dashboard as one finds them: cards without ids, a global `API`, polling every two minutes, all of it cached for a
day, and nginx with an allow-list."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import httpx

from tests.stack.engines import Engine, free_port, program, until
from tests.stack.page.conftest import Opens
from tests.stack.page.stage import HOST, Stage
from tests.stack.page.test_views import views

POLLS: Final = """<script>var API = 'mine', Chart = 'also mine'; const loadData = () => fetch('/insights/alerts');
loadData(); setInterval(loadData, 2 * 60 * 1000);</script>"""
OLD: Final = f"""<!doctype html><html lang="es"><meta charset="utf-8"><title>Fábrica</title>
<link rel="icon" href="data:,"><div class="container"></div>{POLLS}</html>"""
PAGE: Final = f"""<!doctype html><html lang="es"><meta charset="utf-8"><title>Fábrica</title>
<link rel="icon" href="data:,">
<style>.card{{background:white;border-radius:12px;padding:1.5rem;height:8rem}}</style>
<div class="container">
<div class="card"><div class="card-header"><h2 class="card-title">Plan Optimizado 24h</h2></div></div>
<div class="card"><h3>Análisis Histórico SIAR (2000-2025)</h3></div>
<script type="module" src="/analytics/static/js/components/analytics-widget.js"></script>
</div>
{POLLS}
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
    location /insights/ {{ proxy_pass {front}; proxy_set_header Host $http_host; }}
    location /analytics/ {{ proxy_pass {front}; proxy_set_header Host $http_host; }}
    location / {{ return 403; }}
  }}
}}"""


class Host(NamedTuple):
    port: int
    page: Path

    def url(self, who: str) -> str:
        return f"http://{who}.{HOST}:{self.port}/static/index.html"


@contextmanager
def behind_nginx(stage: Stage, folder: Path) -> Iterator[Host]:
    folder, port = folder / "nginx", free_port()
    (folder / "static").mkdir(parents=True)
    (folder / "t").mkdir()
    folder.parent.chmod(0o755)
    (folder / "static" / "index.html").write_text(PAGE)
    known = {"folder": folder, "port": port, "front": stage.front, "user": "user root;"}
    (folder / "nginx.conf").write_text(CONFIG.format(**known))
    command = (program("nginx", "nginx"), "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log")
    ready = f"http://127.0.0.1:{port}/static/index.html"
    engine = Engine(*command, log=folder / "log", ready=ready)
    try:
        engine.start()
        yield Host(port, folder / "static" / "index.html")
    finally:
        engine.end()  # which takes its workers along


def test_two_tags_and_one_location_are_all_that_a_dashboard_behind_nginx_needs(
    embedded: Stage, opens: Opens, tmp_path: Path
) -> None:
    embedded.forget("ana")
    with behind_nginx(embedded, tmp_path) as nginx, opens(viewport={"width": 900, "height": 1200}) as ana:
        assert httpx.get(f"http://127.0.0.1:{nginx.port}/analytic", trust_env=False).status_code == 403
        for _ in range(2):  # the second time it comes from the browser's cache
            ana.page.goto(nginx.url("ana"))
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
        until(
            lambda: {name: count for (name, _), (count, _) in views(embedded, "ana").items()} == both,
            "no views arrived",
        )
