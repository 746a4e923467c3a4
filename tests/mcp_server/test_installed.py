"""The program as people get it: from a wheel, and from a clone without installing anything."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

from hatchling.builders.wheel import WheelBuilder

from tests.mcp_server.factory import factory_of
from tests.mcp_server.test_commands import PRESET, states
from tests.mcp_server.test_service import TEN

PACKAGE: Final = Path(__file__).parents[2] / "mcp-server"


def checked(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """What the program says of the tools of a service."""
    with factory_of() as (_, url):
        (folder / "settings.toml").write_text(PRESET.format(url=url))
        settings = {**os.environ, "TAILSPAN_SETTINGS": str(folder / "settings.toml")}
        asked = [*map(str, command), "check", "--only", "service"]
        return subprocess.run(asked, env=settings, cwd=folder, capture_output=True, text=True, timeout=300)


def test_a_wheel_that_pip_installs_has_the_program_and_its_presets(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(PACKAGE)).build(directory=str(tmp_path), versions=["standard"])
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = tmp_path / "venv" / "lib" / version / "site-packages"
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # all but ours, which is editable there
    said = checked([tmp_path / "venv" / "bin" / "tailspan-mcp"], tmp_path)
    assert (said.returncode, states(said.stdout)) == (0, dict.fromkeys(TEN, "ok")), said.stderr
    where = subprocess.run([python, "-c", "import tailspan_mcp; print(tailspan_mcp.__file__)"], capture_output=True)
    assert where.stdout.decode().startswith(str(packages))


def test_from_a_clone_uvx_runs_it(tmp_path: Path) -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))  # where scripts/install has it
    run: list[str | Path] = ["tool", "run", "--from", PACKAGE, "tailspan-mcp"]
    said = checked([uv, "--offline", *run], tmp_path)  # from its cache, which scripts/install filled
    if not states(said.stdout):
        said = checked([uv, *run], tmp_path)
    assert (said.returncode, states(said.stdout)) == (0, dict.fromkeys(TEN, "ok")), said.stderr
