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


def test_series_alone_feed_no_instruments() -> None:
    """BTCUSDT could be told the volatility index of the samples, but nobody delivers BTCUSDT."""

    def fed(*sources: str) -> set[tuple[str, str]]:
        catalogue = CATALOGUE.with_sources(sources)
        return {(view.name, stream.name) for view in catalogue.views for stream in view.streams if catalogue.is_fed(stream)}

    snapshots = {("macro_features", "crypto_1h"), ("macro_features", "cop_1h")}
    assert fed("samples", "files") & snapshots == set()
    assert fed("samples", "binance") & snapshots == {("macro_features", "crypto_1h")}
    assert fed("fred", "eodhd") & snapshots == {("macro_features", "cop_1h")}
    assert fed("binance", "eodhd") & snapshots == set(), "nor is anything told without series"
    assert ("portfolio_macro_features", "us_macro_1h") in fed("samples")
    assert ("event_features_1h", "crypto_1m") in fed("news"), "an event names its symbol"


def test_a_source_that_nobody_declared() -> None:
    with pytest.raises(UnknownNameError, match="binanse"):
        CATALOGUE.with_sources(["binanse"])
