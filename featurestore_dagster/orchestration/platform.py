"""What asset bodies and sensors work with: stores, ledger, clock and pipeline, made from the settings of the process that runs them."""

from dataclasses import dataclass
from functools import cached_property

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.features.sources import FILES
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Clock
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import fetch, files
from featurestore_dagster.stores.embedded import running_settings
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.redis import RedisStore


@dataclass(frozen=True)
class Platform:
    """Dagster's resource `platform`. Nothing is connected before it is used."""

    configured: Settings
    catalogue: Catalogue

    @cached_property
    def settings(self) -> Settings:
        """Settings with the connections of running servers."""
        return running_settings(self.configured)

    @cached_property
    def clock(self) -> Clock:
        """The configured clock."""
        return self.configured.make_clock()

    @cached_property
    def store(self) -> PostgresStore:
        """Raw and feature tables."""
        return PostgresStore(self.settings.postgres, self.clock)

    @cached_property
    def ledger(self) -> Ledger:
        """Publications, quarantine and quality log."""
        return Ledger(self.settings.postgres)

    @cached_property
    def online(self) -> RedisStore:
        """Newest values."""
        return RedisStore(self.settings.redis, PROJECT)

    def take_files(self, dataset: Dataset) -> list[str]:
        """Land the files that wait in the dataset's drop folder; returns what was refused and why, a sentence each.

        A wrong mapping or a bad file is a problem to show, not a reason to stop what the other sources deliver.
        """
        if dataset not in FILES.datasets or FILES.name not in self.settings.source_names:
            return []
        try:
            taken = files.take(dataset, self.settings.drop, self.clock)
        except ConfigurationError as error:
            return [f"{dataset.name}: {error}"]
        refused = (file for file in taken if isinstance(file, files.RefusedFile))
        return [f"{dataset.name}/{file.name} was refused whole and lies at {file.path}: {file.error}" for file in refused]

    @cached_property
    def pipeline(self) -> Pipeline:
        """The write-audit-publish loops over this platform's stores and sources."""
        return Pipeline(
            self.catalogue,
            self.store,
            self.ledger,
            self.clock,
            lambda dataset, start, end: fetch(dataset, start, end, settings=self.settings, clock=self.clock),
        )
