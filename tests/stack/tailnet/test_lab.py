"""The tests' own tailnet: real, out of touch with the world, and to be had without root."""

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

from tests.stack.engines import ROOT, program
from tests.stack.tailnet.lab import Person, Tailnet

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
ALICE = Person("alice", "alice@example.com", "Alice Example")


def test_devices_reach_each_other_and_each_knows_whose_the_other_is(tailnet: Tailnet) -> None:
    tailnet.join({"dashboard": Person("ops", "ops@example.com"), "alice-laptop": ALICE})
    tailnet.settle()
    here, there = tailnet.nodes.values()
    here.cli("serve", "--bg", "--http=80", "text:hello")
    assert there.get("dashboard", 80, "/") == (200, "hello")
    profile = here.local("whois", addr=there.address).json()["UserProfile"]
    assert (profile["LoginName"], profile["DisplayName"]) == (ALICE.login, ALICE.full_name)


def test_nothing_outside_is_in_reach(tailnet: Tailnet) -> None:
    with tailnet.hub:
        routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    assert "default" not in routes


def test_it_is_to_be_had_without_root() -> None:
    """As nobody, where nobody may read this project and its Python; else as a root who is none outside."""
    engines = program("headscale", "headscale").parents[1]
    python = [*NOBODY, sys.executable, "-c", f"import os, pytest; os.listdir({str(engines)!r})"]
    as_nobody = os.getuid() == 0 and subprocess.run(python, cwd=ROOT, capture_output=True).returncode == 0
    first = "tests/stack/tailnet/test_lab.py::test_devices_reach_each_other_and_each_knows_whose_the_other_is"
    with TemporaryDirectory(prefix="ts") as folder:
        os.chmod(folder, 0o777)
        done = subprocess.run(
            [
                *(NOBODY if as_nobody else ()),
                *("unshare", "--map-root-user", "--net", "--mount"),
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/its", first),
            ],
            env={"PATH": os.environ["PATH"], "TAILSPAN_ENGINES": str(engines), "TAILSPAN_ENGINES_REQUIRED": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout + done.stderr
