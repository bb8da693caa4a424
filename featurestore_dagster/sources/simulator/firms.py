"""News about the simulated firms and their filings. Prices do not belong here."""

import hashlib
from datetime import UTC, date, datetime, time, timedelta

import numpy as np
import polars as pl

from featurestore_dagster.sources.simulator.daily import Paths
from featurestore_dagster.sources.simulator.simulation import Simulation, Stream

EVENTS_PER_DAY = 2
"""Mean over all symbols; by Zipf's law a few have most of them."""

MEAN_LAG_SECONDS = 60
SOURCE_TYPES, SOURCE_SHARES = ("news", "social", "analyst"), (0.6, 0.35, 0.05)
FIRMS = 8
YEARS_OF_FILINGS_BEFORE = 3
FILED_AFTER_DAYS = (25, 45)
AMENDED_SHARE, AMENDED_AFTER = 0.05, timedelta(days=30)
DAY = 86_400_000_000
EPOCH = date(1970, 1, 1)


def event_rows(simulation: Simulation, found: Paths, start: date, end: date) -> pl.DataFrame:
    """Events published on the days `start` to `end` (inclusive): columns of the raw table events, times in microseconds.

    The score leans towards the return of the session in which the event is published.
    """
    weights = 1 / np.arange(1, simulation.symbol_count + 1)
    rates = EVENTS_PER_DAY * simulation.symbol_count * weights / weights.sum()
    month_starts = pl.date_range(start.replace(day=1), end, "1mo", eager=True)
    direction = np.sign(np.diff(np.log(found.close), axis=1, prepend=np.log(found.open[:, :1])))
    parts = []
    for number, symbol in enumerate(found.symbols):
        rate = rates[int(symbol[3:8]) - 1]
        for month in month_starts:
            days = month.replace(day=28).toordinal() + 4 - month.toordinal()
            days -= date.fromordinal(month.toordinal() + days).day - 1
            random = simulation.generator(symbol, Stream.EVENTS, month.year * 12 + month.month)
            count = random.poisson(rate * days)
            published = (month - EPOCH).days * DAY + np.sort(random.integers(days * DAY, size=count))
            session = np.minimum(np.searchsorted(found.closes, published), len(found.closes) - 1)
            kind = random.choice(len(SOURCE_TYPES), count, p=SOURCE_SHARES)
            parts.append(
                pl.DataFrame(
                    {
                        "event_id": pl.Series([f"{symbol}-{month:%Y%m}-{item}" for item in range(count)], dtype=pl.String),
                        "symbol": pl.Series([symbol] * count, dtype=pl.String),
                        "source_type": pl.Series(SOURCE_TYPES).gather(kind),
                        "score": np.clip(0.3 * direction[number, session] + random.normal(0, 0.4, count), -1, 1),
                        "confidence": random.beta(5, 2, count),
                        "firm": pl.Series([f"firm {item}" for item in random.integers(FIRMS, size=count)], dtype=pl.String),
                        "rating": random.integers(1, 6, count).astype(np.float64),
                        "event_timestamp": published,
                        "known_at": published + np.round(random.exponential(MEAN_LAG_SECONDS * 1e6, count)).astype(np.int64),
                    }
                )
            )
    rated = pl.col("source_type") == "analyst"
    rows = pl.concat(parts).filter(pl.col("event_timestamp").is_between((start - EPOCH).days * DAY, ((end - EPOCH).days + 1) * DAY - 1))
    hashes = pl.Series("headline_hash", [hashlib.sha256(name.encode()).hexdigest() for name in rows["event_id"]], dtype=pl.String)
    return rows.with_columns(hashes, *(pl.when(rated).then(name).alias(name) for name in ("firm", "rating")))


def filing_rows(simulation: Simulation, found: Paths) -> pl.DataFrame:
    """Figures of every quarter that ends in the simulated period or the three years before it: columns of company_facts.

    Filed 25 to 45 days after the quarter; one in twenty is amended 30 days later. Times in microseconds.
    """
    first = date(simulation.first.year - YEARS_OF_FILINGS_BEFORE, 1, 1)
    starts = pl.date_range(first, simulation.last, "3mo", eager=True).to_list()
    ends = [(start.replace(day=28) + timedelta(days=70)).replace(day=1) - timedelta(days=1) for start in starts]
    lines = []
    for number, symbol in enumerate(found.symbols):
        shares = float(round(200 * found.volume[number].mean()) + 1)
        revenue = shares * found.close[number, 0] * 0.05
        random = simulation.generator(symbol, Stream.FILINGS)
        for quarter, (start, end) in enumerate(zip(starts, ends, strict=True)):
            sales = revenue * 1.02**quarter * np.exp(0.05 * random.standard_normal())
            margin, correction = 0.1 + 0.03 * random.standard_normal(), 1 + 0.02 * random.standard_normal()
            filed = datetime.combine(end, time(), UTC) + timedelta(
                days=int(random.integers(*FILED_AFTER_DAYS, endpoint=True)), seconds=int(random.integers(86_400))
            )
            is_amended, form = random.random() < AMENDED_SHARE, "10-K" if end.month == 12 else "10-Q"
            name = f"{symbol}-{end:%Y%m}"
            versions = [(filed, form, name, 1.0)] + ([(filed + AMENDED_AFTER, f"{form}/A", f"{name}-A", correction)] if is_amended else [])
            for accepted, kind, accession, factor in versions:
                income = sales * margin * factor
                flows = {"revenue": (sales * factor, "USD"), "net_income": (income, "USD"), "eps_diluted": (income / shares, "USD/shares")}
                stocks = {
                    "equity": (8 * revenue, "USD"),
                    "total_assets": (20 * revenue, "USD"),
                    "long_term_debt": (5 * revenue, "USD"),
                    "shares_outstanding": (shares, "shares"),
                }
                for since, figures in ((start, flows), (end, stocks)):
                    lines += [
                        (symbol, concept, since, end, accession, kind, unit, value, accepted) for concept, (value, unit) in figures.items()
                    ]
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "symbol": pl.String, "concept": pl.String, "period_start": pl.Date, "period_end": pl.Date, "accession": pl.String,
        "form": pl.String, "unit": pl.String, "value": pl.Float64, "event_timestamp": pl.Datetime("us", "UTC"),
    }  # fmt: skip
    return pl.DataFrame(lines, schema=schema, orient="row").with_columns(pl.col("event_timestamp").cast(pl.Int64))
