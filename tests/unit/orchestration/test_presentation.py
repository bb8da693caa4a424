"""What a view's page shows: one line, its features, their distributions within bounds, and where each column comes from."""

import base64
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import dagster as dg
import polars as pl
import pytest

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES, US_EQUITY_1D
from featurestore_dagster.features.raw_tables import CRYPTO_QUOTES, MARKET_EVENTS, US_COMPANY_FACTS, US_EQUITY_CANDLES_1D, US_MACRO
from featurestore_dagster.indicators.fundamentals import pe_ratio
from featurestore_dagster.indicators.intraday import session_return, vwap
from featurestore_dagster.indicators.macro import spy_return, zscore
from featurestore_dagster.indicators.momentum import ret, rsi
from featurestore_dagster.indicators.quotes import bid_ask_spread, price_impact_1pct
from featurestore_dagster.indicators.sentiment import news_sentiment
from featurestore_dagster.indicators.state import position, time_normalized
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.orchestration.lineage import column_lineage
from featurestore_dagster.orchestration.presentation import (
    HISTOGRAM_BARS,
    HISTOGRAMS,
    describe_view,
    distributions,
    features_table,
    rows_metadata,
)

STREAMS = [pytest.param(view, stream, id=f"{view.label}-{stream.name}") for view in CATALOGUE.views for stream in view.streams]


def images(markdown: dg.MarkdownMetadataValue) -> list[ET.Element]:
    """Every image of a text, parsed."""
    found = re.findall(r"!\[[^\]]+\]\(data:image/svg\+xml;base64,([^)]+)\)", markdown.md_str)
    return [ET.fromstring(base64.b64decode(text)) for text in found]


def rows(view: FeatureView, *values: float | None) -> pl.DataFrame:
    return pl.DataFrame(dict.fromkeys(view.feature_names, values), schema=dict.fromkeys(view.feature_names, pl.Float64))


def test_a_distribution_has_an_image_and_its_figures_for_each_feature() -> None:
    markdown = distributions(rows(MOMENTUM_FEATURES, None, *(float(number) for number in range(99))), MOMENTUM_FEATURES)
    drawn = images(markdown)
    assert len(drawn) == len(MOMENTUM_FEATURES.features)
    assert drawn[0][0].text == "distribution of rsi_14"
    assert drawn[0][1].attrib["d"].count("H") == HISTOGRAM_BARS
    line = next(line for line in markdown.md_str.splitlines() if line.startswith("| rsi_14 |"))
    assert line.split("|")[3:-1] == [" 0 ", " 49 ", " 98 ", " 0..100 ", " 1% "]


def test_each_partition_is_counted_apart() -> None:
    partitions = {
        "2018-12-27": pl.DataFrame({"close": [1.0, None, None], "flags": [1, 3, 0]}),
        "2018-12-28": pl.DataFrame({"close": [], "flags": []}, schema={"close": pl.Float64, "flags": pl.Int64}),
        "2018-12-31": pl.DataFrame({"close": [2.0], "flags": [1 << 23]}),
    }
    found = rows_metadata(partitions)
    counts = {key: {name: getattr(value, "data", value) for name, value in metadata.items()} for key, metadata in found.items()}
    assert counts == {
        "2018-12-27": {"dagster/row_count": 3, "flags": {"MISSING_OHLCV": 2, "INSUFFICIENT_OHLCV": 1}, "nulls": {"close": 2}},
        "2018-12-28": {"dagster/row_count": 0},
        "2018-12-31": {"dagster/row_count": 1, "flags": {"OUT_OF_SESSION": 1}},
    }


def test_a_histogram_rises_where_the_values_are() -> None:
    values = [0.0] * 90 + [1.0] * 9 + [24.0]
    path = images(distributions(rows(MOMENTUM_FEATURES, *values), MOMENTUM_FEATURES))[0][1].attrib["d"]
    heights = [int(height) for height in re.findall(r"V(\d+)H", path)]
    assert heights[0] == 0, "the fullest bar reaches the top"
    assert 0 < heights[-1] <= 32
    assert set(heights[2:-1]) == {32}


@pytest.mark.parametrize("values", [(), (None, None), (1.5,), (2.0, 2.0), (1e-300, 1e300), (-1.0, None)])
def test_strange_values_are_drawn_too(values: tuple[float | None, ...]) -> None:
    markdown = distributions(rows(MOMENTUM_FEATURES, *values), MOMENTUM_FEATURES)
    assert len(images(markdown)) == (len(MOMENTUM_FEATURES.features) if any(value is not None for value in values) else 0)


def test_the_size_is_bounded_whatever_the_view() -> None:
    wide = replace(MOMENTUM_FEATURES, features=tuple(rsi.feature(f"a_long_name_of_a_feature_{n}", n=n) for n in range(2, 202)))
    markdown = distributions(rows(wide, *(float(number % 17) for number in range(1000))), wide)
    assert len(images(markdown)) == HISTOGRAMS
    assert f"{200 - HISTOGRAMS} more features are not drawn" in markdown.md_str
    assert len(markdown.md_str) < 40_000


@pytest.mark.parametrize(("view", "stream"), STREAMS)
def test_a_description_is_one_line_and_the_features_are_a_table(view: FeatureView, stream: Stream) -> None:
    assert "\n" not in describe_view(view, stream)
    assert len(describe_view(view, stream)) < 200
    records = features_table(view).records
    assert [record.data["feature"] for record in records] == list(view.feature_names)
    assert all(record.data[name] for record in records for name in ("unit", "formula", "grain", "range"))


@pytest.mark.parametrize(("view", "stream"), STREAMS)
def test_every_feature_comes_from_columns_that_exist(view: FeatureView, stream: Stream) -> None:
    lineage = column_lineage(view, stream).deps_by_column
    assert tuple(lineage) == view.feature_names
    datasets = {dataset.name: dataset for dataset in CATALOGUE.datasets}
    members = {asset_keys.stream(member, part): member for member in view.members for part in member.streams}
    for name, deps in lineage.items():
        assert len(deps) == len(set(deps)), name
        for dep in deps:
            family, table = dep.asset_key.path[0], dep.asset_key.path[-1]
            if dep.asset_key in members:
                assert name == f"{members[dep.asset_key].name}__{dep.column_name}"
            elif family == "raw":
                assert dep.column_name in datasets[table].table.schema, f"{name}: {dep}"
                assert datasets[table] in stream.inputs, f"{view.label}:{name} reads {table}, which is no input of {stream.name}"
            else:
                assert (family, table, dep.column_name) == ("marts", view.mart, "value")


def lineage(feature: Feature, *inputs: Dataset, mart: str | None = None) -> set[str]:
    """`table.column` of a feature computed from these inputs."""
    stream = replace(US_EQUITY_1D, inputs=inputs)
    view = replace(MOMENTUM_FEATURES, features=(feature,), streams=(stream,), mart=mart)
    deps = column_lineage(view, stream).deps_by_column[feature.name]
    return {f"{dep.asset_key.path[-1]}.{dep.column_name}" for dep in deps}


BARS = US_EQUITY_1D.inputs
ACTIONS = {"us_equity_corporate_actions.ratio", "us_equity_corporate_actions.cash_amount"}
GRAINS: dict[str, tuple[Feature, tuple[Dataset, ...], set[str]]] = {
    "bars": (ret.feature("r", k=1), BARS, {"us_equity_candles_1d.close", *ACTIONS}),
    "session sums": (
        vwap.feature(),
        BARS,
        {f"us_equity_candles_1d.{name}" for name in ("high", "low", "close", "volume", "bar_vwap")},
    ),
    "a component of daily bars": (session_return.feature("r", k=5), BARS, {"us_equity_candles_1d.close", *ACTIONS}),
    "benchmark": (spy_return.feature("r", k=1), BARS, {"us_equity_candles_1d.close"}),
    "observations": (zscore.feature("z", column="vix", n=20), (*BARS, US_MACRO), {"us_macro.value"}),
    "events": (
        news_sentiment.feature("s", window_seconds=3600),
        (*BARS, MARKET_EVENTS),
        {f"market_events.{name}" for name in ("source_type", "score", "confidence")},
    ),
    "quotes": (bid_ask_spread.feature(), (*BARS, CRYPTO_QUOTES), {"crypto_quotes.bids", "crypto_quotes.asks"}),
    "quotes with a component": (
        price_impact_1pct.feature(),
        (*BARS, CRYPTO_QUOTES),
        {"crypto_quotes.bids", "crypto_quotes.asks", "us_equity_candles_1d.close", "us_equity_candles_1d.volume"},
    ),
    "filings": (
        pe_ratio.feature(),
        (*BARS, US_COMPANY_FACTS),
        {"us_equity_candles_1d.close", "us_company_facts.value", "us_equity_corporate_actions.ratio"},
    ),
    "calendar": (time_normalized.feature(), BARS, {"us_equity_candles_1d.event_timestamp"}),
    "no such input": (position.feature(), BARS, set()),
}


@pytest.mark.parametrize(("feature", "inputs", "expected"), GRAINS.values(), ids=GRAINS.keys())
def test_lineage_of_each_grain_ends_in_raw_columns(feature: Feature, inputs: tuple[Dataset, ...], expected: set[str]) -> None:
    assert lineage(feature, *inputs) == expected


def test_a_series_read_from_a_mart_comes_from_the_mart() -> None:
    assert lineage(zscore.feature("z", column="vix", n=20), US_EQUITY_CANDLES_1D, mart="macro_series") == {"macro_series.value"}
