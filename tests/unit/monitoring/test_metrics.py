"""Names of metrics by Prometheus' conventions, judged by promtool on what the client library prints of them."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from featurestore_dagster.monitoring.collectors import Family, histogram, scalar
from featurestore_dagster.monitoring.metrics import METRICS, Kind, Metric
from tests.unit.monitoring.conftest import Promtool

PACKAGE = Path(__file__).parents[3] / "featurestore_dagster"


class One(Collector):
    """One sample of each metric."""

    def collect(self) -> list[Family]:
        return [sample(metric) for metric in METRICS]


def sample(metric: Metric) -> Family:
    if metric.kind is Kind.HISTOGRAM:
        return histogram(metric, {"x": ([1, *([0] * len(metric.buckets))], 0.001)})
    return scalar(metric, {("x",) * len(metric.labels): 1.0})


def test_promtool_has_nothing_to_say_against_them(promtool: Promtool) -> None:
    registry = CollectorRegistry()
    registry.register(One())
    text = generate_latest(registry).decode()
    checked = promtool("check", "metrics", text=text)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    printed = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    assert printed == {metric.name: metric.kind.value for metric in METRICS}
    bad = promtool("check", "metrics", text=text.replace("_seconds", "_milliseconds"))
    assert bad.returncode != 0, "promtool would have complained"


def test_each_name_stands_in_the_code_once() -> None:
    words = {path: set(re.findall(r"\w+", path.read_text())) for path in PACKAGE.rglob("*.py")}
    for metric in METRICS:
        assert [path.name for path, found in words.items() if metric.name in found] == ["metrics.py"], metric.name
