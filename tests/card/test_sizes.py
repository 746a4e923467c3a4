"""How much a page that takes the card has to load: packed, which is less than minified (terser: 12,042, 2,251)."""

import gzip

import pytest

from tailspan.page import CHECKOUT


@pytest.mark.parametrize(("name", "most"), [("analytics-widget.js", 8_000), ("card-views.js", 2_500)])
def test_the_scripts_stay_small(name: str, most: int) -> None:
    script = (CHECKOUT / "js" / "components" / name).read_bytes()
    assert len(gzip.compress(script)) < most
