"""What the README names exists, and what exists is named."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from typer.core import TyperGroup
from typer.main import get_command

from tailspan.__main__ import app as commands
from tailspan.app import create_app
from tailspan.config import KEYS, Settings
from tailspan.store.duckdb import DuckDB

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_setting_is_in_the_readme() -> None:
    assert {key for key in KEYS if f"`{key}`" not in README} == set()
    assert set(re.findall(r"`(TAILSPAN_\w+)`", README)) <= set(KEYS)


def test_every_command_of_the_readme_exists() -> None:
    group = get_command(commands)
    assert isinstance(group, TyperGroup)
    known = set(group.commands)
    assert set(re.findall(r"(?<!exec )tailspan ([a-z]+(?:-[a-z]+)*)", README)) <= known
    for script in re.findall(r"scripts/\w+", README):
        assert os.access(ROOT / script, os.X_OK), script


def test_every_endpoint_of_the_readme_exists(tmp_path: Path) -> None:
    store = DuckDB(tmp_path / "t.duckdb")
    paths = create_app(Settings(), store, lambda: datetime(2026, 1, 1, tzinfo=UTC)).openapi()["paths"]
    store.close()
    assert set(re.findall(r"`(?:GET|DELETE) (/[\w/{}-]+)", README)) - {"/docs"} == set(paths)


def test_every_page_of_the_docs_that_is_linked_exists() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([\w./-]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
