"""A tailnet of these tests' own. Its modules run inside the hub's network, and see no other."""

from collections.abc import Iterator

import pytest

from tests.stack.tailnet.lab import Tailnet
from tests.stack.tailnet.network import Hub


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    hub = Hub()
    with hub:
        yield hub
    hub.close()


@pytest.fixture(scope="module")
def tailnet(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    """With nobody in it yet."""
    tailnet = Tailnet(tmp_path_factory.mktemp("tailnet"), hub)
    try:
        tailnet.headscale.set_up()
        yield tailnet
    finally:
        tailnet.close()
