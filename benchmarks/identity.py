"""What naming callers costs: a service under load with tailscaled, without, and with one that is killed in the middle.

    scripts/bench identity

Wants `wrk` (Debian's package). A uvicorn of one process answers 8 connections, whose callers are known by address
alone; every 500 requests a new one comes. tailscaled is a stand-in that answers what a real one did, in a process of
its own. The variants in turn, several rounds; figures are medians. *cached*: what a caller whose node is known costs,
in process, the best of 300 short rounds: on the request's path (an ASGI call), and in the sending thread (from headers
to attributes). *memory*: resident set of a process that asked for 10,000 addresses, over what it was before.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
import uvicorn
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tailspan_otel import attributes as name
from tailspan_otel import instrument
from tailspan_otel.describe import identity_of
from tailspan_otel.identity import Identify
from tailspan_otel.peers import Peers
from tailspan_otel.resolve import Resolve
from tailspan_otel.whois import Whois

from benchmarks.capture import Nothing, app_with, one_after_another
from tailspan.demo.localapi import CAPTURES, LocalAPI

ROUNDS: Final = 3
SECONDS: Final = 6
ADDRESSES: Final = 10_000
VARIANTS: Final = {
    "bare": "bare FastAPI",
    "off": "tailspan, no tailscaled",
    "on": "tailspan, tailscaled",
    "killed": "tailspan, tailscaled killed half-way",
}
LOAD: Final = """
local sent = 0
request = function()
  local caller = math.floor(sent / 500) %% %d
  sent = sent + 1
  return wrk.format("GET", "/route-0", {
    ["X-Forwarded-For"] = "100.64." .. math.floor(caller / 250) .. "." .. caller %% 250
  })
end
"""


def address(number: int) -> str:
    return f"100.64.{number // 250}.{number % 250}"


def tailscaled(path: str) -> None:
    """Answers for every address with a node of its own."""
    node = json.loads((CAPTURES / "whois-ana-laptop.json").read_text())
    with LocalAPI(Path(path)) as api:
        for number in range(ADDRESSES):
            node["Node"] |= {"StableID": f"n{number}CNTRL", "ComputedName": f"device-{number}"}
            node["Node"]["Addresses"] = [f"{address(number)}/32"]
            api.whois[address(number)] = json.dumps(node).encode()
        print("ready", flush=True)
        threading.Event().wait()


class Counting(SpanExporter):
    def __init__(self) -> None:
        self.spans = 0
        self.named = 0

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        requests = [span.attributes for span in spans if span.attributes[name.KIND] == "request"]
        self.spans += len(requests)
        self.named += sum(name.NODE_ID in attributes for attributes in requests)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def service(variant: str) -> None:
    app, counting = app_with(1), Counting()
    if variant != "bare":
        instrument(app, exporter=counting)
    signal.signal(signal.SIGTERM, lambda *_: None)  # which uvicorn raises once more when it has stopped
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listening])
    print(json.dumps({"spans": counting.spans, "named": counting.named}), flush=True)


def cached(path: str) -> None:
    """Microseconds with tailscaled at `path` and without: on the request's path, and in the sending thread."""
    settings = ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
    os.environ |= dict.fromkeys(settings, "100000")  # nothing is sent meanwhile
    os.environ["TAILSPAN_USERSPACE"] = "false"
    sockets = {"off": "/nonexistent", "on": path}
    print(json.dumps({"path": _best(sockets, _request), "thread": _best(sockets, _naming)}), flush=True)
    os._exit(0)


def _request(path: str) -> Callable[[int], None]:
    """As many requests as asked for, of a service beside that tailscaled."""
    app, loop = app_with(1), asyncio.new_event_loop()
    os.environ["TS_SOCKET"] = path
    instrument(app, exporter=Nothing())
    return lambda count: loop.run_until_complete(one_after_another(app, "/route-0", count))


def _naming(path: str) -> Callable[[int], None]:
    """From headers to attributes, as often as asked for."""
    identify, headers = Identify(Peers()), {b"x-forwarded-for": address(7).encode()}
    asking = Whois(path)
    resolve = Resolve(asking, None)
    asking.wait(address(7), 5)

    def name_it(count: int) -> None:
        for _ in range(count):
            identity_of(resolve(identify(("127.0.0.1", 4000), headers, "127.0.0.1"), None, 0.25))

    return name_it


def _best(sockets: dict[str, str], made: Callable[[str], Callable[[int], None]]) -> dict[str, float]:
    """Of many short rounds in turn, so that what drifts on a shared machine drifts for all: µs each."""
    work = {variant: made(path) for variant, path in sockets.items()}
    best = dict.fromkeys(work, float("inf"))
    for each in work.values():
        each(1000)
    for _ in range(300):
        for variant, each in work.items():
            began = time.perf_counter()
            each(50)
            best[variant] = min(best[variant], (time.perf_counter() - began) / 50 * 1e6)
    return best


def memory(path: str) -> None:
    asking = Whois(path, userspace=False)
    asking.wait("100.64.200.1", 5)
    before = _resident_mb()
    for number in range(ADDRESSES):
        while asking.wait(address(number), 5) is None:
            time.sleep(0.01)  # it waits for half of each second only
    print(json.dumps({"mb": _resident_mb() - before}), flush=True)
    os._exit(0)


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "benchmarks.identity", *arguments]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def answer(*arguments: str) -> dict[str, Any]:
    with running(*arguments) as process:
        told: dict[str, Any] = json.loads(process.communicate(timeout=120)[0])
    return told


def under_load(variant: str, script: Path, path: Path) -> dict[str, float]:
    """Requests a second, milliseconds, failures, and which share of the spans has its device."""
    beside = {"TS_SOCKET": str(path) if variant in ("on", "killed") else "/nonexistent", "TAILSPAN_USERSPACE": "false"}
    with running("tailscaled", str(path)) as api, running("service", variant, **beside) as served:
        assert api.stdout and served.stdout
        api.stdout.readline()
        url = f"http://127.0.0.1:{int(served.stdout.readline())}"
        httpx.Client(transport=httpx.HTTPTransport(retries=10)).get(f"{url}/route-0")
        if variant == "killed":
            threading.Timer(SECONDS / 2, api.send_signal, (signal.SIGKILL,)).start()
        load = ["wrk", "-t1", "-c8", f"-d{SECONDS}s", "--latency", "-s", str(script), url]
        said = subprocess.run(load, capture_output=True, text=True, check=True).stdout
        served.terminate()
        counts = json.loads(served.stdout.read())
    return {**_read(said), "named": counts["named"] / counts["spans"] if counts["spans"] else 0.0}


def _read(said: str) -> dict[str, float]:
    """What wrk printed."""
    units = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    found = {
        f"p{percent}": float(number) * units[unit]
        for percent, number, unit in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)\b", said)
    }
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", said)))
    failed += sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", said)))
    [rate] = re.findall(r"Requests/sec:\s+([\d.]+)", said)
    return {"rate": float(rate), **found, "failed": float(failed)}


ROLES: Final[dict[str, Callable[..., None]]] = {
    "tailscaled": tailscaled, "service": service, "cached": cached, "memory": memory,
}  # fmt: skip


def main() -> None:
    if len(sys.argv) > 1:
        ROLES[sys.argv[1]](*sys.argv[2:])
        return
    if shutil.which("wrk") is None:
        sys.exit("benchmarks/identity wants wrk: apt-get install wrk")
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        script, path = Path(folder, "load.lua"), Path(folder, "tailscaled.sock")
        script.write_text(LOAD % ADDRESSES)
        for variant in track(list(VARIANTS) * ROUNDS, "benchmarks/identity", console=Console(stderr=True)):
            found[variant].append(under_load(variant, script, path))
        with running("tailscaled", str(path)) as api:
            assert api.stdout
            api.stdout.readline()
            report(found, answer("cached", str(path)), answer("memory", str(path)))


def report(found: dict[str, list[dict[str, float]]], cached: dict[str, Any], memory: dict[str, float]) -> None:
    table = Table("service", "requests/s", "p50 ms", "p99 ms", "failed", "named", title="identity")
    for variant, title in VARIANTS.items():
        figures = {key: median(run[key] for run in found[variant]) for key in found[variant][0]}
        named = f"{figures['named']:.1%}" if variant != "bare" else ""
        rate, p50, p99 = (f"{figures[key]:.{digits}f}" for key, digits in (("rate", 0), ("p50", 2), ("p99", 2)))
        table.add_row(title, rate, p50, p99, f"{figures['failed']:.0f}", named)
    Console().print(table)
    for place, where in (("path", "on the request's path"), ("thread", "in the sending thread")):
        off, on = cached[place]["off"], cached[place]["on"]
        print(f"{on - off:+.1f} µs {where} with a cached identity (goal: 5 in all), {off:.1f} without tailscaled")
    print(f"{memory['mb']:.1f} MB for {ADDRESSES:,} addresses")


if __name__ == "__main__":
    main()
