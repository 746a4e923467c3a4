"""How fast a log becomes answers: `tailspan backfill` into an empty database, beside Debian's GoAccess on the file.
Fewer lines go through the collector into InfluxDB after that.

    scripts/engines goaccess collector influxd && scripts/bench backfill [LINES]

Lines a second are of the wall clock: GoAccess is one process, ours are two, the command and `tailspan serve`. Seconds
of CPU stand beside them: on a machine with other work they say more.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.ingest import cpu, resident, server
from tests.stack.engines import Collector, Influxd, program, until
from tests.stack.tailnet.services import influx_settings

LINES: Final = 1_000_000
FEW: Final = 100_000
AGENTS: Final = tuple(
    f"Mozilla/5.0 ({device}) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/{version}.0 Safari/605.1.15"
    for device in ("iPhone; CPU iPhone OS 18_0 like Mac OS X", "Macintosh; Intel Mac OS X 10_15_7", "X11; Linux x86_64")
    for version in (17, 18, 26)
)


def write(path: Path, lines: int) -> None:
    """100 devices at 60 routes for 30 days, in nginx's default format; half of the paths have a number in them."""
    random.seed(7)
    devices = [(f"100.64.0.{number}", random.choice(AGENTS)) for number in range(1, 101)]
    begin = int(time.time()) - 30 * 86400
    with path.open("w") as log:
        for number in range(lines):
            address, agent = random.choice(devices)
            at = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(begin + number * 2_500_000 // lines))
            where = random.randrange(60)
            asked = f"/route-{where}" if where % 2 else f"/route-{where}/{random.randrange(2000)}"
            status = 200 if random.random() < 0.95 else random.choice((304, 302, 404, 500))
            log.write(
                f'{address} - - [{at}] "GET {asked}?q={number} HTTP/2.0" {status} {random.randrange(50_000)} '
                f'"https://dash.tail.ts.net/page-{where % 10}" "{agent}"\n'
            )


def watched(command: list[str], **environment: str) -> tuple[float, float, float]:
    """Seconds, seconds of CPU, MB at most."""
    begun, before = time.perf_counter(), _children()
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL) as process:
        most = 0.0
        while process.poll() is None:
            try:
                most = max(most, resident(process.pid, "VmHWM"))
            except (StopIteration, FileNotFoundError):
                break
            time.sleep(0.02)
    assert process.returncode == 0
    return time.perf_counter() - begun, _children() - before, most


def _children() -> float:
    """CPU of those that ended."""
    return sum(os.times()[2:4])


def goaccess(path: Path) -> tuple[float, float, float]:
    engine = program("goaccess", "goaccess")
    libraries = ":".join(map(str, (engine.parent / "usr" / "lib").iterdir()))
    report = path.with_suffix(".json")
    command = [
        str(engine),
        str(path),
        "--log-format=COMBINED",
        "--no-global-config",
        "--no-progress",
        "-o",
        str(report),
    ]
    return watched(command, LD_LIBRARY_PATH=libraries)


def main() -> None:
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else LINES
    table = Table("", "s", "lines/s", "CPU s", "MB at most", title=f"backfill, {lines:,} lines")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "access.log")
        write(path, lines)
        took, used, most = goaccess(path)
        table.add_row("GoAccess 1.7", f"{took:.1f}", f"{lines / took:,.0f}", f"{used:.1f}", f"{most:.0f}")
        with server(TAILSPAN_USERSPACE="false") as (url, pid):  # whatever tailscaled runs here
            command = [sys.executable, "-m", "tailspan", "backfill", str(path), "--json"]
            for name in ("tailspan backfill", "once more"):
                before = cpu(pid)
                took, used, most = watched(command, TAILSPAN_URL=url)
                all_cpu, all_mb = f"{used:.1f} + {cpu(pid) - before:.1f}", f"{most:.0f} + {resident(pid, 'VmHWM'):.0f}"
                table.add_row(name, f"{took:.1f}", f"{lines / took:,.0f}", all_cpu, all_mb)
            assert answered(url) == lines
        write(path, few := min(lines, FEW))
        took, used, most = through_collector(path, Path(folder))
        name = f"{few:,} lines, through the collector"
        table.add_row(name, f"{took:.1f}", f"{few / took:,.0f}", f"{used:.1f}", f"{most:.0f}")
    Console().print(table)


def answered(url: str) -> int:
    """How many requests there are of the log."""
    asked = {"metrics": "requests", "days": "60", "service": "nginx"}
    [found] = httpx.get(f"{url}/analytics/query", params=asked, timeout=60).raise_for_status().json()["rows"]
    return int(found["requests"])


def through_collector(path: Path, folder: Path) -> tuple[float, float, float]:
    """Seconds until all are answered about; CPU and MB of the command alone."""
    influxd = Influxd(folder / "influxd")
    influxd.set_up()
    collector = Collector(folder / "collector", influxd)
    collector.start()
    settings = influx_settings(influxd) | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
    settings |= {"TAILSPAN_USERSPACE": "false"}  # whatever tailscaled runs on this machine
    lines = sum(1 for _ in path.open())
    try:
        with server(**settings) as (url, _):
            begun = time.perf_counter()
            command = [sys.executable, "-m", "tailspan", "backfill", str(path), "--json"]
            _, used, most = watched(command, TAILSPAN_URL=url)
            until(lambda: answered(url) == lines, "not all lines are there", collector.said, patience=600)
            return time.perf_counter() - begun, used, most
    finally:
        collector.end()
        influxd.end()


if __name__ == "__main__":
    main()
