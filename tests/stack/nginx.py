"""Debian's nginx with the files of nginx/, and Debian's logrotate."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.stack.engines import ROOT, Engine, free_port, program

FILES: Final = ROOT / "nginx"
INSTALLED: Final = "/etc/nginx/tailspan"  # where the files say that they lie
ADDRESS: Final = "X-Address"  # a request's header: from where it comes, for nginx and all behind it


class Nginx(Engine):
    """Before a service at some ports of this machine; its log is in the format of that name."""

    def __init__(self, folder: Path, upstreams: Sequence[int], form: str = "tailspan") -> None:
        for part in ("logs", "tmp", "tailspan"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for file in FILES.glob("*.conf"):
            (folder / "tailspan" / file.name).write_text(file.read_text().replace(INSTALLED, str(folder / "tailspan")))
        self.folder = folder
        self.access_log = folder / "logs" / "access.log"
        self.pid_file = folder / "nginx.pid"
        proxy = (folder / "tailspan" / "proxy.conf").read_text().splitlines()
        behind_serve = "\n".join(line for line in proxy if "Tailscale-" not in line)  # as serve.conf says
        (folder / "tailspan" / "proxy-behind-serve.conf").write_text(behind_serve)
        self.url, self.behind_serve = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        (folder / "htpasswd").write_text("ana@example.com:{PLAIN}right\n")
        (folder / "nginx.conf").write_text(self._config(upstreams, form))
        super().__init__(
            *(program("nginx", "nginx"), "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"),
            log=folder / "nginx.log",
            ready=f"{self.url}/nginx-lives",
        )

    def _config(self, upstreams: Sequence[int], form: str) -> str:
        servers = " ".join(f"server 127.0.0.1:{port} max_fails=0;" for port in upstreams)
        paths = " ".join(
            f"{kind}_temp_path {self.folder}/tmp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return f"""
            daemon off;
            env FAKETIME; env FAKETIME_DONT_FAKE_MONOTONIC; env NO_FAKE_STAT;
            worker_processes 2;
            pid {self.pid_file};
            error_log {self.folder}/error.log;
            {"user root;" if os.getuid() == 0 else ""}
            events {{ worker_connections 256; }}
            http {{
                {paths}
                include {self.folder}/tailspan/http.conf;
                access_log {self.access_log} {form};
                set_real_ip_from 127.0.0.1;
                real_ip_header {ADDRESS};
                upstream service {{ {servers} }}
                server {{
                    listen {self.url.removeprefix("http://")};
                    location = /nginx-lives {{ access_log off; return 200; }}
                    location = / {{ return 302 /board; }}
                    location = /kept {{ default_type text/html; return 200 kept; }}
                    location /refused {{ add_header X-Uri $uri always; return 403; }}
                    location /private/ {{
                        auth_basic private;
                        auth_basic_user_file {self.folder}/htpasswd;
                        rewrite old$ /private/ redirect;
                        default_type text/html;
                        alias {FILES}/;
                    }}
                    location = /guarded {{ auth_request /auth; alias {self.folder}/nginx.conf; }}
                    location = /auth {{
                        internal;
                        include {self.folder}/tailspan/subrequest.conf;
                        proxy_pass http://service/items/1;
                    }}
                    location / {{
                        include {self.folder}/tailspan/proxy.conf;
                        proxy_next_upstream error timeout http_503;
                        proxy_pass http://service;
                    }}
                    include {self.folder}/tailspan/analytics.conf;
                }}
                server {{
                    listen {self.behind_serve.removeprefix("http://")};
                    include {self.folder}/tailspan/serve.conf;
                    location / {{
                        include {self.folder}/tailspan/proxy-behind-serve.conf;
                        proxy_pass http://service;
                    }}
                }}
            }}"""


def logrotate(folder: Path, text: str) -> None:
    """Runs it once, by force, on a configuration of this text."""
    config = folder / "logrotate.conf"
    config.write_text(text)
    config.chmod(0o644)
    engine = program("logrotate", "logrotate")
    libraries = ":".join(map(str, (engine.parent / "usr" / "lib").iterdir()))
    subprocess.run(
        [engine, "--force", "--state", folder / "logrotate.state", config],
        env={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": libraries},
        check=True,
        capture_output=True,
        text=True,
    )
