"""Faults of feeds, put into good bars on purpose, and the table of which were put where. Finding them belongs to the audit."""

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from zlib import crc32

import numpy as np
import polars as pl

from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.sources.simulator.daily import TICK
from featurestore_dagster.sources.simulator.intraday import SECOND, Bars
from featurestore_dagster.sources.simulator.simulation import LATENCY, Booleans, Floats, Integers, Simulation, Stream


class Fault(StrEnum):
    """Kinds of faults."""

    MISSING = "missing"
    GAP = "gap"
    STUCK = "stuck"
    SPIKE = "spike"
    OHLC = "ohlc"
    RESTATED = "restated"
    DUPLICATE = "duplicate"
    LATE = "late"
    OUT_OF_ORDER = "out_of_order"
    WRONG_UNIT = "wrong_unit"


RATES = {
    Fault.GAP: 1e-4,
    Fault.STUCK: 5e-5,
    Fault.SPIKE: 5e-5,
    Fault.OHLC: 1e-4,
    Fault.MISSING: 1e-3,
    Fault.RESTATED: 1e-3,
    Fault.DUPLICATE: 5e-4,
    Fault.LATE: 5e-3,
    Fault.OUT_OF_ORDER: 1e-2,
}
"""Per bar, at its beginning."""

WRONG_UNIT_RATE = 1 / 500
"""Per session of a dataset: its instants are a thousandth, seconds read as milliseconds."""

GAP_BARS = (5, 60)
STUCK_BARS = 30
SPIKE_FACTOR = 3
SPIKE_AFTER_BARS = 130
"""A spike is told from a move by the bars before it: 61 are needed, and a gap may lie among them."""

RESTATEMENT = 0.005
LARGEST_MOVE_ACROSS = {Fault.SPIKE: 0.09}
"""Log return that a fault may hide: a spike reverts, and no fault hides a crash or a split."""

LARGEST_MOVE = 0.3
LATE_SECONDS = 600
RESTATED_SECONDS = (3600, 3 * 86_400)
OUT_OF_ORDER_BARS = 3

TRUTH = {"symbol": pl.String(), "kind": pl.String(), "incident": pl.Int64(), "event_timestamp": UTC_MICROSECONDS}
NO_FAULTS = pl.DataFrame(schema=TRUTH)


def bar_rows(
    simulation: Simulation, dataset: Dataset, symbols: Sequence[str], bars: Bars, listed: Booleans, block: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of a dataset from bars, with faults when the simulation has them.

    Args:
        simulation: Seed, and whether there are faults.
        dataset: Whose bars they are.
        symbols: Rows of the arrays.
        bars: Good bars.
        listed: Which of them exist.
        block: Number of this part of the period.

    Returns:
        Rows (symbol, timeframe, event_timestamp and known_at in microseconds, prices, volume, trade_count), sorted by symbol and bar; and
        the faults among them, columns `TRUTH`: one line per bar that a fault touches, `incident` the instant at which it began.
    """
    kinds, parameters, incidents = _plan(simulation, dataset, symbols, bars, listed, block)
    prices = {"open": bars.open, "high": bars.high, "low": bars.low, "close": bars.close, "volume": bars.volume}
    frame = pl.DataFrame(
        {
            "symbol": pl.Series(list(symbols), dtype=pl.String).gather(np.repeat(np.arange(len(symbols)), len(bars.ends))),
            "event_timestamp": np.tile(bars.ends, len(symbols)),
            **{name: values.ravel() for name, values in prices.items()},
            "trade_count": pl.Series(bars.trade_count.ravel()).fill_nan(None),
            "listed": listed.ravel(),
            "kind": kinds.ravel(),
            "parameter": parameters.ravel(),
            "incident": bars.ends[incidents.ravel()],
        }
    ).with_columns(pl.lit(dataset.timeframe.value).alias("timeframe"))
    names = list(Fault)
    truth = frame.filter(pl.col("kind") >= 0).select(
        "symbol",
        pl.col("kind").replace_strict(range(len(names)), names, return_dtype=pl.String).alias("kind"),
        "incident",
        pl.col("event_timestamp").cast(UTC_MICROSECONDS),
    )
    return _injected(frame.filter("listed"), dataset), truth


def wrong_unit_sessions(simulation: Simulation, dataset: Dataset, sessions: pl.DataFrame) -> list[int]:
    """Positions of sessions whose instants arrive in the wrong unit."""
    if not simulation.with_faults:
        return []
    days = enumerate(sessions["session"])
    name = crc32(dataset.name.encode())
    return [n for n, day in days if simulation.generator("BATCH", Stream.FAULTS, name, day.toordinal()).random() < WRONG_UNIT_RATE]


def _injected(frame: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Rows as the feed delivers them."""
    names = list(Fault)

    def when(fault: Fault) -> pl.Expr:
        return pl.col("kind") == names.index(fault)

    open_, high, low, close = (pl.col(name) for name in ("open", "high", "low", "close"))
    before = {name: pl.col(f"{name}_before_stuck") for name in ("close", "volume", "trade_count")}
    stuck_from = [pl.col(name).shift(1).over("symbol").alias(f"{name}_at_stuck") for name in before]
    begins = when(Fault.STUCK) & (pl.col("incident") == pl.col("event_timestamp"))
    carried = [
        pl.when(begins).then(pl.col(f"{name}_at_stuck")).forward_fill().over("symbol").alias(f"{name}_before_stuck") for name in before
    ]
    bar = dataset.timeframe.duration / timedelta(microseconds=1)
    delay = (
        pl.when(when(Fault.LATE))
        .then(-LATE_SECONDS * SECOND * (1 - pl.col("parameter")).log())
        .when(when(Fault.OUT_OF_ORDER))
        .then((1 + (pl.col("parameter") * OUT_OF_ORDER_BARS).floor()) * bar + SECOND)
        .otherwise(0.0)
        .round(0)
        .cast(pl.Int64)
    )
    known_at = pl.col("event_timestamp") + LATENCY // timedelta(microseconds=1) + delay
    spike = when(Fault.SPIKE)
    stuck = when(Fault.STUCK)
    rows = (
        frame.with_columns(stuck_from)
        .with_columns(carried)
        .filter(~when(Fault.MISSING) & ~when(Fault.GAP))
        .with_columns(
            known_at.alias("known_at"),
            pl.when(stuck).then(before["close"]).otherwise(open_).alias("open"),
            pl.when(stuck)
            .then(before["close"])
            .when(spike)
            .then(pl.max_horizontal(high, SPIKE_FACTOR * close))
            .otherwise(high)
            .alias("high"),
            pl.when(stuck)
            .then(before["close"])
            .when(when(Fault.OHLC))
            .then((pl.max_horizontal(open_, close) * 1.01 + TICK).round(2))
            .otherwise(low)
            .alias("low"),
            pl.when(stuck).then(before["close"]).when(spike).then(SPIKE_FACTOR * close).otherwise(close).alias("close"),
            *(pl.when(stuck).then(before[name]).otherwise(pl.col(name)).alias(name) for name in ("volume", "trade_count")),
        )
    )
    sign = pl.when(pl.col("parameter") * 1000 % 1 < 0.5).then(-1).otherwise(1)
    # Upwards where the price has no tick to spare.
    step = pl.max_horizontal((close * RESTATEMENT).round(2), pl.lit(TICK)) * pl.when(close < 3 * TICK).then(1).otherwise(sign)
    corrected = (close + step).round(2)
    waited = (RESTATED_SECONDS[0] + pl.col("parameter") * (RESTATED_SECONDS[1] - RESTATED_SECONDS[0])) * SECOND
    restated = rows.filter(when(Fault.RESTATED)).with_columns(
        corrected.alias("close"),
        pl.max_horizontal(high, corrected).alias("high"),
        pl.min_horizontal(low, corrected).alias("low"),
        (pl.col("known_at") + waited.round(0).cast(pl.Int64)).alias("known_at"),
    )
    columns = ["symbol", "timeframe", "event_timestamp", "known_at", "open", "high", "low", "close", "volume", "trade_count"]
    return pl.concat([part.select(columns) for part in (rows, restated, rows.filter(when(Fault.DUPLICATE)))])


def _plan(
    simulation: Simulation, dataset: Dataset, symbols: Sequence[str], bars: Bars, listed: Booleans, block: int
) -> tuple[Integers, Floats, Integers]:
    """Per symbol and bar: kind of fault (position in `Fault`, -1 none), its random parameter in [0, 1), position at which it began.

    Faults keep a bar's distance, so that each can be found for itself.
    """
    shape = bars.close.shape
    kinds, parameters, incidents = np.full(shape, -1), np.zeros(shape), np.zeros(shape, dtype=np.int64)
    if not simulation.with_faults:
        return kinds, parameters, incidents
    names, count = list(Fault), shape[1]
    rates = np.array(list(RATES.values()))[:, None]
    log_close = np.log(bars.close)
    name = crc32(dataset.timeframe.value.encode())
    for row, symbol in enumerate(symbols):
        draws = simulation.generator(symbol, Stream.FAULTS, name, block).random((len(RATES), count)) / rates
        positions = np.flatnonzero(listed[row])
        if not len(positions):
            continue
        first, last = positions[0], positions[-1]
        taken = np.zeros(count, dtype=bool)
        for number, start in np.argwhere(draws < 1):
            fault, parameter = list(RATES)[number], draws[number, start]
            length = _length(fault, parameter)
            before, after = start - 1, start + length
            if before < first or after > last or taken[before : after + 1].any():
                continue
            if fault is Fault.SPIKE and start - first < SPIKE_AFTER_BARS:
                continue
            if abs(log_close[row, after] - log_close[row, before]) > LARGEST_MOVE_ACROSS.get(fault, LARGEST_MOVE):
                continue
            taken[start:after] = True
            kinds[row, start:after] = names.index(fault)
            parameters[row, start:after] = parameter
            incidents[row, start:after] = start
    return kinds, parameters, incidents


def _length(fault: Fault, parameter: float) -> int:
    """Bars that a fault touches."""
    if fault is Fault.GAP:
        return GAP_BARS[0] + int(parameter * (GAP_BARS[1] - GAP_BARS[0] + 1))
    return STUCK_BARS if fault is Fault.STUCK else 1
