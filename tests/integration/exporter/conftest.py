"""A real `featurestore exporter` over servers that a test may freeze or kill."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from featurestore_dagster.monitoring import metrics
from featurestore_dagster.monitoring.metrics import Metric
from featurestore_dagster.settings import Settings
from tests.integration.http.conftest import environment
from tests.integration.serving.conftest import Served, deployed, served

__all__ = ["Served", "deployed", "served"]

COMMAND = [sys.executable, "-m", "featurestore_dagster.cli", "exporter"]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Exporter:
    """A running exporter."""

    process: "subprocess.Popen[str]"
    url: str

    def text(self) -> str:
        answer = httpx.get(f"{self.url}/metrics", timeout=60)
        assert answer.status_code == 200
        return answer.text

    def samples(self) -> Samples:
        """A scrape: values by name and labels."""
        families = text_string_to_metric_families(self.text())
        return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}

    def up(self) -> dict[str, float]:
        """Which collectors answered."""
        return {dict(labels)["collector"]: value for (name, labels), value in self.samples().items() if name == metrics.COLLECTOR_UP.name}


def value(samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float], metric: Metric, suffix: str = "", **labels: str) -> float | None:
    return samples.get((metric.name + suffix, frozenset(labels.items())))


@contextmanager
def exporting(settings: Settings) -> Iterator[Exporter]:
    """`featurestore exporter` on a free port; killed at the end when the test has not stopped it."""
    variables = environment(settings, FEATURESTORE_EXPORTER_PORT="0")
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True, env=variables) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("exporting on http://127.0.0.1:"), line
            yield Exporter(process, line.split()[2].removesuffix("/metrics;"))
        finally:
            process.kill()
