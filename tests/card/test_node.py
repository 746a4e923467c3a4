"""What needs no browser, by node's own runner."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.stack.engines import REQUIRED


def test_the_card_is_drawn_as_its_own_tests_say() -> None:
    node = shutil.which("node")
    if node is None:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)("node is missing")
    ran = subprocess.run(
        [node, "--test", "--test-reporter=spec", str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout
