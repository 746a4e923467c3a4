from benchmarks.series import bound, deliver
from tests.stack.engines import Collector, Influxd


def test_what_strangers_make_up_makes_no_more_series_than_the_documentation_says(
    influxd: Influxd, collector: Collector
) -> None:
    assert deliver(collector, influxd, 10_000) <= bound(10_000)
