"""Features of many symbols in one frame have the bits that each symbol's rows give alone."""

import polars as pl

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.indicator import Grain
from featurestore_dagster.pipeline.blocks.bars import BATCH_ROWS, series_values
from tests.unit.indicators.grains import random_frame

OVER_BARS = (Grain.BARS, Grain.COMPLETED_DAYS, Grain.DAILY)
FEATURES = list({feature.name: feature for view in CATALOGUE.views for grain in OVER_BARS for feature in view.by_grain[grain]}.values())


def test_symbols_of_any_length_have_the_values_they_have_alone() -> None:
    lengths = {"AAA": 700, "BBB": BATCH_ROWS, "CCC": 1, "DDD": 500, "EEE": 30}
    panel = pl.concat(
        random_frame(Grain.BARS, FEATURES, seed=seed, rows=rows, symbol=symbol) for seed, (symbol, rows) in enumerate(lengths.items())
    )
    numbers = [name for feature in FEATURES for name in feature.input_columns if panel.schema[name] == pl.Float64]
    some = pl.int_range(pl.len()) % 397 == 300
    panel = panel.with_columns(pl.when(~some).then(pl.col(name)).alias(name) for name in set(numbers))

    found = series_values(FEATURES, panel)

    parts = panel.partition_by("symbol", maintain_order=True)
    assert found.equals(pl.concat(part.select(feature.expression() for feature in FEATURES) for part in parts))


def test_no_bars_have_no_values() -> None:
    nothing = random_frame(Grain.BARS, FEATURES, rows=3, symbol="AAA").clear()
    assert series_values(FEATURES, nothing).schema == {feature.name: pl.Float64 for feature in FEATURES}
