"""Column lineage: feature -> raw or published columns, for every grain. Derived from what indicators and their components read."""

from collections.abc import Iterator

import dagster as dg

from featurestore_dagster.features.macro_series import BENCHMARK_BARS, MACRO_SERIES
from featurestore_dagster.features.raw_tables import COMPANY_FACTS, CORPORATE_ACTIONS, EVENTS, MACRO_OBSERVATIONS, POSITIONS, QUOTES
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.indicator import Feature, Grain
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.pipeline.blocks.facts import FIGURES

ADJUSTED_BY = ("ratio", "cash_amount")
"""Columns of a corporate action behind an adjustment factor."""

SESSION_SUMS = {
    "session_turnover": ("high", "low", "close", "volume", "bar_vwap"),
    "session_volume": ("volume",),
    "usual_session_volume": ("volume",),
}
"""What accumulated columns of a session are made of."""

BOOK_SIDES = {"bid": ("bids",), "ask": ("asks",)}
"""First part of a column of the parsed book -> raw columns; every other column of it comes from both sides."""

SERIES = {series.column for series in MACRO_SERIES}


def column_lineage(view: FeatureView, stream: Stream) -> dg.TableColumnLineage:
    """Feature -> raw columns that its indicator and its components read.

    An adjusted price also comes from the corporate actions. What only the calendar or the instrument decides comes from the rows' event
    time. A feature of which the stream has no input has no lineage there: its values are NULL.
    """
    return dg.TableColumnLineage({feature.name: list(dict.fromkeys(_sources(feature, view, stream))) for feature in view.features})


def _sources(feature: Feature, view: FeatureView, stream: Stream) -> Iterator[dg.TableColumnDep]:
    for component in feature.components:
        yield from _sources(component, view, stream)
    for name in feature.input_columns:
        yield from _column(name, feature, view, stream)


def _column(name: str, feature: Feature, view: FeatureView, stream: Stream) -> Iterator[dg.TableColumnDep]:
    grain = feature.indicator.grain
    if grain is Grain.PUBLISHED:
        yield from _published(name, view, stream)
    elif grain is Grain.EVENTS:
        yield from _columns(stream.input_of(EVENTS.name), "event_timestamp" if name == "published_at" else name)
    elif grain is Grain.QUOTES:
        yield from _columns(stream.input_of(QUOTES.name), *BOOK_SIDES.get(name.partition("_")[0], ("bids", "asks")))
    elif name.startswith("spy_"):
        yield from _columns(BENCHMARK_BARS, name.removeprefix("spy_"))
    elif name in SERIES:
        if view.mart is not None:
            yield dg.TableColumnDep(asset_keys.mart(view.mart), "value")
        else:
            yield from _columns(stream.input_of(MACRO_OBSERVATIONS.name), "value")
    elif name in FIGURES:
        yield from _columns(stream.input_of(COMPANY_FACTS.name), "value")
        yield from _columns(stream.input_of(CORPORATE_ACTIONS.name), "ratio")
    elif name in ("position", "position_age_seconds"):
        yield from _columns(stream.input_of(POSITIONS.name), "position" if name == "position" else "event_timestamp")
    else:
        yield from _bar_column(name, feature, stream)


def _published(name: str, view: FeatureView, stream: Stream) -> Iterator[dg.TableColumnDep]:
    """Of a member's streams, those that share the rows' calendar: the asset depends on these."""
    for member in view.members:
        feature = name.removeprefix(f"{member.name}__")
        if feature != name:
            beside = [part for part in member.streams if part.calendar == stream.calendar]
            yield from (dg.TableColumnDep(asset_keys.stream(member, part), feature) for part in beside)


def _bar_column(name: str, feature: Feature, stream: Stream) -> Iterator[dg.TableColumnDep]:
    """A column of bars, or one that the calendar gives."""
    is_daily = feature.indicator.grain in (Grain.DAILY, Grain.COMPLETED_DAYS)
    bars = stream.daily_bars if is_daily or not stream.is_bar_by_bar else stream.bars
    column = name.removeprefix("raw_")
    known = {declared.name for declared in bars.table.columns} if bars else set()
    parts = SESSION_SUMS.get(column, (column,) if column in known else ())
    is_adjusted = name == "adjustment_factor" or (parts and feature.indicator.adjusted and not name.startswith("raw_"))
    if is_adjusted:
        yield from _columns(stream.input_of(CORPORATE_ACTIONS.name), *ADJUSTED_BY)
    if parts:
        yield from _columns(bars, *parts)
    elif not is_adjusted:
        yield from _columns(stream.inputs[0], "event_timestamp")


def _columns(dataset: Dataset | None, *names: str) -> Iterator[dg.TableColumnDep]:
    if dataset is not None:
        yield from (dg.TableColumnDep(asset_keys.raw(dataset), name) for name in names)
