"""Trading hours of exchanges: from committed text for those that the catalogue uses, from exchange_calendars for all others.

exchange_calendars brings pandas and takes seconds to import, which every process that asks for a session would pay. `featurestore
generate` therefore writes what it knows into `exchange_sessions/<code>.json`, a line a year, to be read and reviewed; `generate --check`
tells when it knows something else. Sessions of markets that are no exchange, and partition windows, belong in `lookup`.
"""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import polars as pl

from featurestore_dagster.errors import ConfigurationError, UnknownNameError
from featurestore_dagster.model.catalogue import Catalogue

FIRST_DAY = date(1990, 1, 1)
LAST_DAY = date(2049, 12, 31)
"""Sessions are laid out once for this range, whatever the clock says: a calendar is the same in every process and every replay."""

ALWAYS_OPEN = "24/7"
FOREIGN_EXCHANGE = "FX"
COLOMBIAN_PESO = "COP"
COLOMBIAN_EXCHANGE = "XBOG"

WRITTEN = Path(__file__).parent / "exchange_sessions"
HOUR_COLUMNS = ("opens", "closes", "break_start", "break_end")


@dataclass(frozen=True, eq=False)
class ExchangeHours:
    """Sessions of an exchange, known from `first_day` to `last_day`.

    `table`: session Date; opens, closes, break_start, break_end Datetime(us, UTC); ascending; the breaks null where trading goes through.
    """

    time_zone: str
    first_day: date
    last_day: date
    table: pl.DataFrame


def exchange_hours(name: str) -> ExchangeHours:
    """Hours of the exchange with this code in exchange_calendars, such as "XNYS".

    Raises:
        UnknownNameError: There is no such code.
    """
    written = {path.stem: path for path in WRITTEN.glob("*.json")}
    return parse(written[name].read_text()) if name in written else recorded(name)


def generated_files(catalogue: Catalogue) -> dict[str, str]:
    """Path in the repository -> text, for every exchange that a dataset or a stream of the catalogue lives on."""
    calendars = {dataset.calendar for dataset in catalogue.datasets} | {s.calendar for view in catalogue.views for s in view.streams}
    # The peso trades on the days of Colombia's exchange.
    codes = sorted({COLOMBIAN_EXCHANGE if name == COLOMBIAN_PESO else name for name in calendars} - {ALWAYS_OPEN, FOREIGN_EXCHANGE})
    return {f"featurestore_dagster/calendars/exchange_sessions/{code}.json": render(recorded(code)) for code in codes}


def recorded(name: str) -> ExchangeHours:
    """Hours as exchange_calendars has them.

    Raises:
        UnknownNameError: There is no such code.
    """
    # Imported here because it brings pandas, which no process should pay for that needs none of its calendars.
    import exchange_calendars

    codes = set(exchange_calendars.get_calendar_names(include_aliases=False)) - {ALWAYS_OPEN}
    if name not in codes:
        raise UnknownNameError("calendar", name, codes | {ALWAYS_OPEN, FOREIGN_EXCHANGE, COLOMBIAN_PESO})
    first_day, last_day = FIRST_DAY, LAST_DAY
    try:
        known = exchange_calendars.get_calendar(name, start=str(first_day), end=str(last_day))
    except ValueError:  # this exchange's holidays are recorded for a shorter range, which only its class tells
        kind = type(exchange_calendars.get_calendar(name))
        earliest, latest = kind.bound_min(), kind.bound_max()
        first_day = max(first_day, earliest.date()) if earliest is not None else first_day
        last_day = min(last_day, latest.date()) if latest is not None else last_day
        known = kind(start=str(first_day), end=str(last_day))
    instants = (known.opens, known.closes, known.break_starts, known.break_ends)
    table = pl.DataFrame(
        {"session": pl.Series(known.sessions.to_numpy()).cast(pl.Date)}
        | {
            column: pl.Series(values.to_numpy(dtype="datetime64[us]")).dt.replace_time_zone("UTC")
            for column, values in zip(HOUR_COLUMNS, instants, strict=True)
        }
    )
    return ExchangeHours(str(known.tz), first_day, last_day, table)


def render(exchange: ExchangeHours) -> str:
    """JSON text of the hours in local time: each year's usual hours, the days closed beside the weekend, and the days of other hours.

    Raises:
        ConfigurationError: Local hours do not say it, as when a session ends after midnight.
    """
    local = {column: pl.col(column).dt.convert_time_zone(exchange.time_zone).dt.strftime("%H:%M") for column in HOUR_COLUMNS}
    through = pl.format("{}-{}", local["opens"], local["closes"])
    with_break = pl.format("{}-{} {}-{}", local["opens"], local["break_start"], local["break_end"], local["closes"])
    hours: dict[date, str] = dict(exchange.table.select("session", pl.coalesce(with_break, through)).iter_rows())
    weekdays = sorted({day.isoweekday() for day in hours})
    days = (exchange.first_day + timedelta(days=number) for number in range((exchange.last_day - exchange.first_day).days + 1))
    years: dict[int, list[date]] = {}
    for day in days:
        if day.isoweekday() in weekdays:
            years.setdefault(day.year, []).append(day)
    lines = []
    for year, working in years.items():
        usual = Counter(hours[day] for day in working if day in hours).most_common(1)[0][0]
        line = {
            "hours": usual,
            "closed": " ".join(f"{day:%m-%d}" for day in working if day not in hours),
            "special": {f"{day:%m-%d}": hours[day] for day in working if hours.get(day, usual) != usual},
        }
        lines.append(f'    "{year}": {json.dumps(line)}')
    head = {
        "time_zone": exchange.time_zone,
        "first_day": exchange.first_day.isoformat(),
        "last_day": exchange.last_day.isoformat(),
        "weekdays": weekdays,
    }
    fields = [f'  "{key}": {json.dumps(value)}' for key, value in head.items()]
    text = "{\n" + ",\n".join([*fields, '  "years": {\n' + ",\n".join(lines) + "\n  }"]) + "\n}\n"
    if not parse(text).table.equals(exchange.table):
        raise ConfigurationError(
            f"the sessions of {exchange.time_zone} from {exchange.first_day} cannot be written as local hours; "
            "allowed: exchanges whose sessions open and close, to the minute, within one local day"
        )
    return text


def parse(text: str) -> ExchangeHours:
    """Hours from the text that `render` wrote."""
    record = json.loads(text)
    zone, first_day, last_day = record["time_zone"], date.fromisoformat(record["first_day"]), date.fromisoformat(record["last_day"])
    years = record["years"]
    closed = [date.fromisoformat(f"{year}-{day}") for year, line in years.items() for day in line["closed"].split()]
    special = {date.fromisoformat(f"{year}-{day}"): hours for year, line in years.items() for day, hours in line["special"].items()}
    usual = {int(year): line["hours"] for year, line in years.items()}
    session, hours = pl.col("session"), pl.col("hours")
    days = pl.date_range(first_day, last_day, eager=True).alias("session").to_frame()
    working = days.filter(session.dt.weekday().is_in(record["weekdays"]) & ~session.is_in(closed))
    with_hours = working.with_columns(
        hours=pl.coalesce(
            session.replace_strict(special, default=None, return_dtype=pl.String),
            session.dt.year().replace_strict(usual, return_dtype=pl.String),
        )
    )

    def instant(position: int) -> pl.Expr:
        """The clock time at this position of `hours` as an instant."""
        local = session.dt.combine(hours.str.slice(position, 5).str.to_time("%H:%M"))
        return local.dt.replace_time_zone(zone, ambiguous="earliest").dt.convert_time_zone("UTC")

    paused = pl.when(hours.str.contains(" ", literal=True))
    table = with_hours.select(
        "session",
        opens=instant(0),
        closes=instant(-5),
        break_start=paused.then(instant(6)),
        break_end=paused.then(instant(-11)),
    )
    return ExchangeHours(zone, first_day, last_day, table)
