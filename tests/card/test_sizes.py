"""How much a page that takes the card has to load: minified by its owner, or packed by a server."""

import gzip

import minify
import pytest

from tailspan.page import CHECKOUT


@pytest.mark.parametrize(
    ("name", "minified", "packed"), [("analytics-widget.js", 15_000, 8_000), ("card-views.js", 4_000, 2_500)]
)
def test_the_scripts_stay_small(name: str, minified: int, packed: int) -> None:
    script = (CHECKOUT / "js" / "components" / name).read_bytes()
    assert len(minify.string("text/javascript", script.decode()).encode()) <= minified
    assert len(gzip.compress(script)) < packed
