"""Stopped servers in a data folder of each test's own, copied from one that is made once."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices


@pytest.fixture
def make_services() -> Iterator[Callable[[Path], EmbeddedServices]]:
    """Servers of any folder, stopped after the test."""
    made: list[EmbeddedServices] = []

    def make(folder: Path) -> EmbeddedServices:
        made.append(EmbeddedServices(Settings(data_folder=folder)))
        return made[-1]

    yield make
    for services in made:
        services.stop()


@pytest.fixture
def embedded(initialised: Path, tmp_path: Path, make_services: Callable[[Path], EmbeddedServices]) -> EmbeddedServices:
    """Stopped servers that ran before, in a folder of this test's own, whose name is awkward."""
    folder = tmp_path / 'it\'s a "folder" ü'
    subprocess.run(["cp", "-a", str(initialised), str(folder)], check=True)  # cp keeps the owner
    return make_services(folder)
