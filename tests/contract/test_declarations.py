"""Every declaration: complete in itself, refused when it contradicts itself, and projected alike into every form."""

import dataclasses
import re
from collections.abc import Callable
from datetime import date, timedelta

import jsonschema
import polars as pl
import pytest

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import DeclarationError, UnknownNameError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES as VIEW
from featurestore_dagster.features.equity_views import US_EQUITY_1D
from featurestore_dagster.features.macro_series import series_of
from featurestore_dagster.features.raw_tables import CANDLES, FX_CANDLES_1H
from featurestore_dagster.indicators.averages import ema
from featurestore_dagster.indicators.macro import index_level
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.indicator import indicator
from featurestore_dagster.model.raw_table import Dataset, RawTable
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.units import Unit
from featurestore_dagster.projections.json_schema import json_schema
from featurestore_dagster.projections.pandera_schema import dataset_schema, stream_schema
from featurestore_dagster.projections.postgres_table import feature_schema, feature_table, postgres_type, raw_table
from featurestore_dagster.projections.relation import dataset_relation, relations, stream_relation

STREAMS = [(view, stream) for view in CATALOGUE.views for stream in view.streams]
each_view = pytest.mark.parametrize("view", CATALOGUE.views, ids=lambda view: view.name)
each_stream = pytest.mark.parametrize(("view", "stream"), STREAMS, ids=lambda part: part.name)
each_dataset = pytest.mark.parametrize("dataset", CATALOGUE.datasets, ids=lambda dataset: dataset.name)

SNAKE = re.compile(r"^[a-z][a-z0-9_]*$")


# Complete ---------------------------------------------------------------------------------------------------------------------------------


@each_view
def test_a_view_says_what_it_is(view: FeatureView) -> None:
    assert view.description
    assert view.owner.startswith("team:")
    assert view.group in {"indicators", "macro", "events", "training"}
    assert SNAKE.match(view.name)
    assert view.feast_ttl > view.ttl >= view.slo.max_lag >= timedelta(minutes=1)
    assert view.look_back_bars >= view.warm_up_bars >= 0


@each_view
def test_every_feature_has_unit_formula_range_and_bars(view: FeatureView) -> None:
    for feature in view.features:
        declared = feature.indicator
        assert SNAKE.match(feature.name.replace("__", "_")), feature.name
        assert declared.unit in Unit
        assert declared.formula in feature.formula
        assert feature.look_back_bars >= feature.warm_up_bars >= 0
        assert feature.expression().meta.output_name() == feature.name
        if declared.minimum is not None and declared.maximum is not None:
            assert declared.minimum < declared.maximum
        if declared.unit is Unit.OSCILLATOR:
            assert (declared.minimum, declared.maximum) == (0, 100)
        if declared.unit is Unit.CODE:
            assert None not in (declared.minimum, declared.maximum)


@each_stream
def test_a_stream_reads_what_somebody_delivers_by_a_calendar_that_exists(view: FeatureView, stream: Stream) -> None:
    market = calendar(stream.calendar)
    assert market.session(date(2018, 12, 3)).window_end.tzinfo is not None
    for dataset in stream.inputs:
        assert any(dataset in source.datasets for source in CATALOGUE.sources)
    if view.mart:
        assert all(series.maximum_age_days > 0 for series in series_of(view))


@each_dataset
def test_a_dataset_says_what_it_is(dataset: Dataset) -> None:
    assert dataset.description
    assert SNAKE.match(dataset.name)
    assert dataset.latency >= timedelta(0)
    assert all(column.description for column in dataset.table.all_columns)
    if dataset.bars:
        assert CATALOGUE.listings(dataset), "bars are expected of nobody"
        assert {"symbol", "timeframe"} <= set(dataset.table.key)


def test_names_of_relations_are_unique_and_say_where_the_rows_are() -> None:
    found = relations(CATALOGUE)
    assert len(found) == len(CATALOGUE.datasets) + len(STREAMS)
    assert all(name == relation.name and name.startswith(f"{relation.schema}.") for name, relation in found.items())
    assert len({(relation.schema, relation.table, relation.scope) for relation in found.values()}) == len(found)


def test_the_views_of_the_issue_are_there_with_their_features_in_order() -> None:
    expected = {
        "daily_ohlcv_stats": "open high low close volume adjusted_close",
        "momentum_features": (
            "rsi_14 macd macd_signal macd_hist trend_strength momentum_1m momentum_3m momentum_6m momentum_12m"
            " high_52w_position low_52w_position range_52w_position"
        ),
        "technical_indicators_view": "rsi_14 macd ema_20 bollinger_bands_position atr volume_sma_ratio",
        "portfolio_macro_features": (
            "spy_return_1d spy_return_5d spy_return_20d spy_volatility_20d vix term_spread credit_spread treasury_2y treasury_10y"
            " market_regime"
        ),
    }
    assert {name: CATALOGUE.view(name).feature_names for name in expected} == {name: tuple(text.split()) for name, text in expected.items()}


# Refused ----------------------------------------------------------------------------------------------------------------------------------


def _changed(**change: object) -> Callable[[], object]:
    return lambda: dataclasses.replace(VIEW, **change)  # type: ignore[arg-type]


def _catalogue(**change: object) -> Callable[[], object]:
    return lambda: dataclasses.replace(CATALOGUE, **change)  # type: ignore[arg-type]


def _stream(**change: object) -> tuple[Stream, ...]:
    return (dataclasses.replace(US_EQUITY_1D, **change),)  # type: ignore[arg-type]


STRANGER = dataclasses.replace(FX_CANDLES_1H, name="btc_candles_1m")
UNLISTED = dataclasses.replace(VIEW, name="nobody_knows")

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "duplicate feature": (_changed(features=(*VIEW.features, VIEW.features[0])), r"view momentum_features: duplicate names \['rsi_14'\]"),
    "feature named like a key": (
        _changed(features=(ema.feature("symbol", n=20),)),
        r"view momentum_features: duplicate names \['symbol'\]",
    ),
    "no feature": (_changed(features=()), "view momentum_features: needs at least one feature"),
    "no stream": (_changed(streams=()), "view momentum_features: needs at least one feature and one stream"),
    "duplicate stream": (_changed(streams=(US_EQUITY_1D, US_EQUITY_1D)), r"view momentum_features: duplicate names \['us_equity_1d'\]"),
    "TTL below SLO": (_changed(ttl=timedelta(minutes=30)), "view momentum_features: TTL 0:30:00 is below its SLO 1:00:00"),
    "SLO below a minute": (_changed(slo=SLO(timedelta(seconds=59))), "view momentum_features: SLO of 0:00:59 is under one minute"),
    "coverage": (
        _changed(slo=SLO(timedelta(hours=1), tier1_coverage=1.5)),
        r"view momentum_features: tier-1 coverage 1.5 is not in \(0, 1\]",
    ),
    "cron of four fields": (
        _changed(streams=_stream(schedule="15 16 * *")),
        "view momentum_features, stream us_equity_1d: '15 16 [*] [*]'",
    ),
    "cron out of range": (_changed(streams=_stream(schedule="61 16 * * 1-5")), "view momentum_features, stream us_equity_1d: '61 16"),
    "cron in words": (
        _changed(streams=_stream(schedule="a day at four pm")),
        "view momentum_features, stream us_equity_1d: 'a day",
    ),
    "unknown dataset": (
        _catalogue(views=(*CATALOGUE.views, dataclasses.replace(VIEW, name="v", streams=_stream(inputs=(STRANGER,))))),
        "view v reads dataset btc_candles_1m, which is not in the catalogue",
    ),
    "unknown view": (
        _catalogue(services=(FeatureService("s", "a service", views=(UNLISTED,)),)),
        "service s refers to view nobody_knows, which is not in the catalogue",
    ),
    "view declared twice": (_catalogue(views=(*CATALOGUE.views, VIEW)), r"declared twice: \['momentum_features'\]"),
    "dataset declared twice": (_catalogue(datasets=(*CATALOGUE.datasets, FX_CANDLES_1H)), r"declared twice: \['fx_candles_1h'\]"),
    "quarantine limit": (
        lambda: dataclasses.replace(FX_CANDLES_1H, quarantine_limit=1.0),
        r"dataset fx_candles_1h: quarantine_limit 1.0 is not in \[0, 1\)",
    ),
    "key that is no column": (
        lambda: RawTable("quotes", "quotes", key=("venue",), columns=CANDLES.columns),
        r"raw table quotes: .*\['venue'\]",
    ),
    "series that nobody declares": (
        lambda: series_of(dataclasses.replace(VIEW, name="v", features=(index_level.feature("libor", column="libor"),))),
        r"view v reads \['libor'\], which no MacroSeries declares",
    ),
}


@pytest.mark.parametrize(("declare", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_contradiction_is_refused_by_name(declare: Callable[[], object], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        declare()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"formula": ""}, "needs a formula"),
        ({"oracle": ""}, "an oracle"),
        ({"inputs": ()}, "its input columns"),
        ({"minimum": 1.0, "maximum": 1.0}, "minimum 1.0 is not below maximum 1.0"),
        ({"unit": "furlongs"}, "furlongs"),
    ],
)
def test_an_indicator_that_says_too_little_is_refused_by_its_module(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"unit": Unit.PRICE, "formula": "c", "inputs": ("close",), "oracle": "identity", "first": 0}

    def nameless() -> pl.Expr:
        return pl.col("close")

    assert indicator(**good)(nameless).name == "nameless"  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match=message) as raised:
        indicator(**good | change)(nameless)  # type: ignore[arg-type]
    assert "nameless" in str(raised.value)
    assert __name__ in str(raised.value)


def test_a_name_that_nobody_declared_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown feature view 'momentum_feature'; nearest: momentum_features"):
        CATALOGUE.view("momentum_feature")
    with pytest.raises(UnknownNameError, match="unknown feature of view momentum_features 'rsi'; nearest: rsi_14"):
        CATALOGUE.references(["momentum_features:rsi"])
    with pytest.raises(UnknownNameError):
        CATALOGUE.references(["momentum_features"])


# Projected alike --------------------------------------------------------------------------------------------------------------------------


@each_stream
def test_the_projections_of_a_view_agree(view: FeatureView, stream: Stream) -> None:
    schema = feature_schema(view)
    table = {column.name: column for column in feature_table(view).columns if column.name != "batch_id"}
    audited = stream_schema(view, stream).columns
    published = json_schema(CATALOGUE)["$defs"][view.name]
    assert list(schema) == list(table) == list(audited) == list(stream_relation(view, stream).frame_schema)
    assert {name: column.type for name, column in table.items()} == {name: postgres_type(dtype) for name, dtype in schema.items()}
    assert {name for name, column in table.items() if column.nullable} == {name for name, column in audited.items() if column.nullable}
    assert {name for name, column in table.items() if column.nullable} == set(view.feature_names)
    assert set(published["properties"]) == ({"view", *schema} - {"stream"})
    assert published["required"] == list(published["properties"])
    for feature in view.features:
        branch = published["properties"][feature.name]
        assert branch["type"] == ["integer" if schema[feature.name] == pl.Int64() else "number", "null"]
        assert (branch.get("minimum"), branch.get("maximum")) == (feature.indicator.minimum, feature.indicator.maximum)


@each_dataset
def test_the_projections_of_a_dataset_agree(dataset: Dataset) -> None:
    schema = dataset_relation(dataset).frame_schema
    table = {column.name: column for column in raw_table(dataset.table).columns if column.name not in ("batch_id", "ingested_at")}
    audited = dataset_schema(dataset).columns
    assert list(schema) == list(table) == list(audited)
    assert {name: column.type for name, column in table.items()} == {name: postgres_type(dtype) for name, dtype in schema.items()}
    assert {name for name, column in table.items() if column.nullable} == {name for name, column in audited.items() if column.nullable}
    assert set(raw_table(dataset.table).primary_key) == {*dataset.table.identity, "known_at"}


def test_the_json_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema(CATALOGUE))
