"""docker-compose.yml without Docker: each service in a network of its own, its image replaced by what the tests built.

Commands, environment, mounted files, names, ports, health checks and their order are those of the file. Users and
limits are not kept. A key that this does not know is an error.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.stack.engines import PATIENCE_S, REQUIRED, ROOT, program, until

FILE: Final = ROOT / "docker-compose.yml"
NETWORK: Final = "10.77.0"  # nobody else sees it: the bridge, too, is in a namespace
KNOWN: Final = {
    *("image", "build", "command", "environment", "volumes", "secrets", "ports", "depends_on", "healthcheck"),
    *("user", "mem_limit", "restart"),
}


def read() -> dict[str, Any]:
    """The file, with its anchors followed. Its only variables are those of `secrets`."""
    content: dict[str, Any] = yaml.safe_load(FILE.read_text())
    for name, service in content["services"].items():
        assert not service.keys() - KNOWN, f"{name}: {service.keys() - KNOWN}"
    assert not re.findall(r"(?<!\$)\$\{?[A-Z]", FILE.read_text().replace("$$", "")), (
        "a variable, which this does not know"
    )
    return content


class Compose:
    """The project in a folder (of a short name: sockets are in it). `environ` is what .env would have."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        content = read()
        self.services: dict[str, dict[str, Any]] = content["services"]
        self.folder = folder
        self.hub = f"tailspan-{os.getpid()}"
        self.addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(self.services, 10)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for name, secret in content["secrets"].items():
            self._made("secrets").joinpath(name).write_text(environ[secret["environment"]])

    def create(self) -> None:
        """The networks. Skips the test where nobody may make them, unless engines are required."""
        made = subprocess.run(["ip", "netns", "add", self.hub], capture_output=True, text=True)
        if made.returncode:
            reason = f"no network namespaces here: {made.stderr.strip()}"
            (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)
        self._ip(self.hub, "link add bridge type bridge")
        self._ip(self.hub, f"addr add {NETWORK}.1/24 dev bridge")
        self._ip(self.hub, "link set bridge up")
        for number, (name, address) in enumerate(self.addresses.items()):
            own = self._network(name)
            subprocess.run(["ip", "netns", "add", own], check=True)
            self._ip(self.hub, f"link add peer{number} type veth peer name eth0 netns {own}")
            self._ip(self.hub, f"link set peer{number} master bridge up")
            self._ip(own, f"addr add {address}/24 dev eth0")
            self._ip(own, "link set eth0 up")
            self._ip(own, "link set lo up")
            hosts = Path("/etc/netns", own, "hosts")  # `ip netns exec` shows it as /etc/hosts
            hosts.parent.mkdir(parents=True)
            names = {"localhost": "127.0.0.1", **self.addresses}
            hosts.write_text("".join(f"{address} {name}\n" for name, address in names.items()))

    def remove(self) -> None:
        """Everything but the volumes: these are in the folder."""
        self.down()
        for name in map(self._network, self.services):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)
        subprocess.run(["ip", "netns", "del", self.hub], capture_output=True)

    def up(self, *names: str) -> None:
        """Starts them, and before that what they depend on, each as far as they ask."""
        for name in names:
            for other, wanted in self.services[name].get("depends_on", {}).items():
                self.up(other)
                self.wait(other, wanted["condition"])
            if name not in self._running:
                self._running[name] = self._start(name, self._command(name), self._log(name))

    def down(self) -> None:
        for process in reversed(self._running.values()):
            process.terminate()
            process.wait(PATIENCE_S)
        self._running.clear()

    def exec(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in a running service."""
        log = self.folder / "exec.log"
        log.unlink(missing_ok=True)
        code = self._start(name, list(command), log).wait(PATIENCE_S)
        return subprocess.CompletedProcess(command, code, log.read_text())

    def ask(self, name: str, port: int, path: str, *headers: str) -> subprocess.CompletedProcess[str]:
        """A GET from outside, as through a published port."""
        command = [
            "curl",
            "--silent",
            "--show-error",
            "--fail-with-body",
            f"http://{self.addresses[name]}:{port}{path}",
        ]
        for header in (f"Host: 127.0.0.1:{port}", *headers):
            command += ["--header", header]
        return subprocess.run(["ip", "netns", "exec", self.hub, *command], capture_output=True, text=True)

    def inside(self, name: str, path: str) -> Path:
        """Where a path of the service is."""
        return self._root(name) / path.lstrip("/")

    def said(self, name: str) -> str:
        return self._log(name).read_text()[-4000:]

    def wait(self, name: str, condition: str) -> None:
        process = self._running[name]
        if condition == "service_completed_successfully":
            assert process.wait(PATIENCE_S) == 0, self.said(name)
        elif condition == "service_healthy":
            kind, *test = self.services[name]["healthcheck"]["test"]
            assert kind == "CMD"
            until(lambda: self.exec(name, *test).returncode == 0, f"{name} is not healthy", lambda: self.said(name))
        else:
            assert condition == "service_started"

    def _command(self, name: str) -> list[str]:
        """Of the file, after the entry point of its image."""
        image, command = self.services[name]["image"], self.services[name]["command"]
        if image.startswith("otel/opentelemetry-collector-contrib:"):
            return [str(program("collector", "otelcol-contrib")), *command]
        if image.startswith("influxdb:"):
            return [str(program("influxd", command[0])), *command[1:]]
        assert image == "tailspan"
        return list(command)

    def _start(self, name: str, command: list[str], log: Path) -> "subprocess.Popen[bytes]":
        root = self._root(name)
        own = {key: self._inside(value, name) for key, value in self.services[name].get("environment", {}).items()}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        arguments = [command[0], *(self._inside(argument, name) for argument in command[1:])]
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._network(name), *arguments],
                env={"PATH": path, "COLUMNS": "200", **own},
                cwd=root,
                stdout=output,
                stderr=output,
            )

    def _root(self, name: str) -> Path:
        """A folder with all that is mounted where it is mounted."""
        root = self._made("roots", name)
        for target, source in self._mounts(name).items():
            link = root / target.lstrip("/")
            if not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source)
        return root

    def _mounts(self, name: str) -> dict[str, Path]:
        """What is mounted, by its path inside."""
        service = self.services[name]
        mounts = {f"/run/secrets/{secret}": self.folder / "secrets" / secret for secret in service.get("secrets", ())}
        for mount in service.get("volumes", ()):
            source, target = mount.split(":")[:2]
            mounts[target] = ROOT / source if source.startswith(".") else self._made("volumes", source)
        return mounts

    def _inside(self, text: str, name: str) -> str:
        """The same with paths of its mounts below its root, and `$$` as `$`."""
        tops = "|".join({target.split("/")[1] for target in self._mounts(name)}) or "nothing"
        return re.sub(rf"(?<![\w.-])/({tops})(?=/|\W|$)", rf"{self._root(name)}/\1", text).replace("$$", "$")

    def _made(self, *parts: str) -> Path:
        folder = self.folder.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _log(self, name: str) -> Path:
        return self._made("logs") / name

    def _network(self, name: str) -> str:
        return f"{self.hub}-{name}"

    def _ip(self, network: str, command: str) -> None:
        subprocess.run(["ip", "-n", network, *command.split()], check=True)
