"""The catalogue with only the sources that are switched on."""

from datetime import date

import pytest

from featurestore_dagster.errors import UnknownNameError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.raw_tables import CRYPTO_QUOTES, US_EQUITY_CANDLES_1D
from featurestore_dagster.settings import Settings


def test_what_a_source_that_is_off_would_deliver_is_not_expected() -> None:
    usual = CATALOGUE.with_sources(Settings().source_names)
    assert [source.name for source in usual.sources] == ["samples", "files"]
    assert usual.listings(US_EQUITY_CANDLES_1D)["AAPL"].last == date(2013, 3, 1)
    assert usual.listings(CRYPTO_QUOTES) == {}
    assert (usual.datasets, usual.views, usual.services) == (CATALOGUE.datasets, CATALOGUE.views, CATALOGUE.services)
    more = CATALOGUE.with_sources(["eodhd", "binance", "samples"])
    assert [source.name for source in more.sources] == ["samples", "binance", "eodhd"], "the catalogue's order is the priority"
    assert more.listings(US_EQUITY_CANDLES_1D)["AAPL"].last is None
    assert set(more.listings(CRYPTO_QUOTES)) == {"BTCUSDT", "ETHUSDT"}


def test_a_source_that_nobody_declared() -> None:
    with pytest.raises(UnknownNameError, match="binanse"):
        CATALOGUE.with_sources(["binanse"])
