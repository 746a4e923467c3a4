"""A `log_format` of one's own: as it stands in nginx.conf, and what nginx then writes."""

from pathlib import Path
from typing import Final

import pytest

from tailspan.errors import SettingError
from tailspan.ingest.line import Origin
from tailspan.ingest.lines import Log
from tailspan.ingest.nginx import chosen
from tailspan.ingest.tally import Tally
from tailspan.span import ABOUT
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
    with pytest.raises(SettingError, match=r"lacks when .*; the answer"):
        chosen("$remote_addr $request")


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
