"""A `log_format` of one's own: as it stands in nginx.conf, and what nginx then writes."""

from pathlib import Path
from typing import Final

import pytest
from starlette.testclient import TestClient

from tailspan.errors import SettingError
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Log
from tailspan.ingest.nginx import chosen
from tailspan.ingest.tally import Tally
from tailspan.span import ABOUT
from tests.server.logs import logs, read, written
from tests.server.spans import NOW_NS, SECOND

AT: Final = "01/Mar/2026:11:00:00 +0000"
AT_NS: Final = NOW_NS - 3600 * SECOND


def test_a_log_format_of_ones_own_is_read_as_it_stands_in_nginx_conf() -> None:
    text = """log_format timed '$remote_addr [$time_iso8601] ${request_method} "$request_uri" '
                     '$status rt=$request_time "$http_user_agent"';"""
    [form] = chosen(text)
    line = b'fd7a:115c:a1e0::7 [2026-03-01T12:00:00+01:00] POST "/a%20b/7?q=1" 201 rt=1.500 "curl/8"'
    log = Log(Origin("dashboard"), Tally())
    log.open_file(form)
    lines = log.read(line + b"\n", NOW_NS)
    [about] = lines.abouts.values()
    known = dict(zip(ABOUT, about, strict=True))
    assert (known["method"], known["route"], known["address"]) == ("POST", "/a b/{id}", "fd7a:115c:a1e0::7")
    _, _, _, start, took, opened, path = lines.rows.decode().rstrip("\n").split("\t")
    assert (int(start), int(took), opened, path) == (AT_NS - 3 * SECOND // 2, 3 * SECOND // 2, "", "/a b/7")


# what stands in nginx.conf, and lines that nginx makes of it
OFTEN: Final = {
    "tabs": (
        r"'time:$time_local\thost:$remote_addr\tua:$http_user_agent\treq:$request\tstatus:$status'",
        f"time:{AT}\thost:100.64.0.7\tua:\\x22curl\\x22\\x09req:GET /b\treq:GET /prices?a HTTP/1.1\tstatus:200",
    ),
    "tabs, escape=json": (
        r"escape=json '$msec\t$remote_addr\t' $http_user_agent\t$request_method\t$request_uri\t$status",
        "\t".join((f"{AT_NS // SECOND}.000", "100.64.0.7", r"\"a\tb\"", "GET", r"/prices?\"", "200")),
    ),
    "whole URLs": (
        """'$remote_addr [$time_local] "$request_method $scheme://$host$request_uri $server_protocol" $status'""",
        f'100.64.0.7 [{AT}] "GET http://dash.tail.ts.net/prices?to=http://b:80/c HTTP/1.1" 200',
    ),
    "whole URLs with ports": (
        "'$remote_addr [$time_local] $request_method $scheme://$host:$server_port${request_uri} $status'",
        f"100.64.0.7 [{AT}] GET https://[fd7a::1]:443/prices?to=http://b:80/c 200",
    ),
    "URLs of the name that was said": (
        "'$remote_addr [$time_local] $request_method $http_host$request_uri $status'",
        f"100.64.0.7 [{AT}] GET dash.tail.ts.net:8443/prices?to=http://b:80/c 200",
    ),
    "addresses with ports": (
        """'$remote_addr:$remote_port - [$time_local] "$request" $status'""",
        f'100.64.0.7:45362 - [{AT}] "GET /prices HTTP/1.1" 200',
    ),
}


@pytest.mark.parametrize("often", OFTEN)
def test_log_formats_as_they_are_often_written_are_read(often: str, client: TestClient, tmp_path: Path) -> None:
    text, line = OFTEN[often]
    found = read(client, written(tmp_path / "a.log", f"{line}\n"), form=f"log_format own {text};")
    assert (found["added"], found["dropped"]) == (1, {})
    [log] = logs(client)
    assert [log[name] for name in ("timestamp", "ip", "method", "path", "status")] == [
        "2026-03-01T11:00:00.000Z",
        "100.64.0.7",
        "GET",
        "/prices",
        200,
    ]


def test_a_log_format_that_cannot_tell_a_request_says_what_it_lacks() -> None:
    for text, lacking in (
        ("$remote_addr $request", r"lacks when \(.*\); the answer \(\$status\)\."),
        ("$remote_addr [$time_iso8601] $request_uri $status", r"lacks the method \(\$request or \$request_method\)\."),
        ("$remote_addr [$time_iso8601] $request_method $status", r"lacks the path \(\$request or \$request_uri\)\."),
        (r"'$msec $remote_addr $request\n$status'", r"lacks one line for each request \(it has \\n\)\."),
    ):
        with pytest.raises(SettingError, match=lacking):
            chosen(text)


OWN_TEXT: Final = """$remote_addr - [$time_local] "$request" $status it's "$http_user_agent\""""
CONF: Final = """http {{ # it's commented
    log_format timing '$request_time';
    log_format {escape} "$remote_addr - [$time_local] \\"$request\\" "
        '$status it\\'s "' # the agent
        $http_user_agent '"';
    access_log /var/log/nginx/access.log own;
}}
"""


def test_a_log_format_is_found_in_the_file_that_has_it_however_it_is_quoted(tmp_path: Path) -> None:
    conf = tmp_path / "nginx.conf"
    conf.write_text(CONF.format(escape="own"))
    for given in (str(conf), CONF.format(escape="own"), OWN_TEXT):
        assert [(form.name, form.text) for form in chosen(given)] == [("own", OWN_TEXT)], given
    conf.write_text(CONF.format(escape="own escape=json"))
    [form] = chosen(str(conf))
    assert form.pattern.fullmatch(rb"""1.2.3.4 - [%s] "GET /\"a HTTP/1.1" 200 it's "b\"c" """.strip() % AT.encode())


def test_a_log_format_that_is_none_or_that_lets_clients_write_lines_is_refused(tmp_path: Path) -> None:
    conf = tmp_path / "nginx.conf"
    for content, wrong in (
        (CONF.format(escape="own escape=none"), "The log_format own has escape=none: .*Take escape=json"),
        ("http { log_format timing '$request_time'; }", r"lacks when .*/etc/nginx/nginx.conf"),
        ("http { include more; }", "has no log_format: nginx writes combined then, .* sudo nginx -T > all.conf"),
    ):
        conf.write_text(content)
        with pytest.raises(SettingError, match=wrong):
            chosen(str(conf))
    with pytest.raises(SettingError, match=r"--format is .*no file: .*No such file.*/etc/nginx/nginx.conf"):
        chosen("combnied")
