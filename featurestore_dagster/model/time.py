"""Time: bar lengths, computation anchors and the injected clock. Sessions and holidays do not belong here (see `calendars`)."""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

ISO_DURATION = re.compile(r"^(?P<sign>[+-]?)P(?=\d|T)(?:(?P<days>\d+)D)?(?:T(?=\d)(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?)?$")

CRON_FIELD = re.compile(r"^(?:\*|(?P<first>\d+)(?:-(?P<last>\d+))?)(?:/(?P<step>[1-9]\d*))?$")
CRON_BOUNDS = {"minute": (0, 59), "hour": (0, 23), "day of month": (1, 31), "month": (1, 12), "day of week": (0, 7)}


class Timeframe(StrEnum):
    """Length of a bar; `1d` is one session, not 24 hours."""

    ONE_MINUTE = "1m"
    FIVE_MINUTES = "5m"
    FIFTEEN_MINUTES = "15m"
    ONE_HOUR = "1h"
    FOUR_HOURS = "4h"
    ONE_DAY = "1d"

    @property
    def duration(self) -> timedelta:
        """Nominal length; the last intraday bar of a session may be shorter."""
        return _DURATIONS[self]

    def anchor(self, instant: datetime) -> datetime:
        """Start of the computation chunk that holds `instant` (UTC).

        A recursive indicator started at another bar differs in its last bits. Every computation therefore starts at the same anchor
        (less look-back), so that one day recomputed alone equals the same day of a ten-year backfill, bit by bit.
        """
        midnight = instant.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        match self:
            case Timeframe.ONE_DAY:
                return midnight.replace(month=1, day=1)
            case Timeframe.ONE_HOUR | Timeframe.FOUR_HOURS:
                return midnight.replace(day=1)
            case Timeframe.FIVE_MINUTES | Timeframe.FIFTEEN_MINUTES:
                return midnight - timedelta(days=midnight.weekday())
            case Timeframe.ONE_MINUTE:
                return midnight


_DURATIONS = {
    Timeframe.ONE_MINUTE: timedelta(minutes=1),
    Timeframe.FIVE_MINUTES: timedelta(minutes=5),
    Timeframe.FIFTEEN_MINUTES: timedelta(minutes=15),
    Timeframe.ONE_HOUR: timedelta(hours=1),
    Timeframe.FOUR_HOURS: timedelta(hours=4),
    Timeframe.ONE_DAY: timedelta(days=1),
}


class Clock(Hashable, Protocol):
    """Source of "now"; injected so that tests and replays decide it."""

    @property
    def replayed(self) -> str | None:
        """What to print beside every time when this is not the real clock, else None."""

    def now(self) -> datetime:
        """The current instant, UTC."""


@dataclass(frozen=True)
class SystemClock:
    """The machine's clock, shifted by `offset` (zero in production)."""

    offset: timedelta = timedelta(0)

    @property
    def replayed(self) -> str | None:
        """The offset, when there is one."""
        return f"replay clock: real time {self.offset}" if self.offset else None

    def now(self) -> datetime:
        """The machine's instant plus the offset, UTC."""
        return datetime.now(UTC) + self.offset


@dataclass(frozen=True)
class FrozenClock:
    """Stands still at `instant` (UTC): a replay of old data as if it were now."""

    instant: datetime

    @property
    def replayed(self) -> str | None:
        """The frozen instant."""
        return f"replay clock: {self.instant.isoformat()}"

    def now(self) -> datetime:
        """The frozen instant."""
        return self.instant


def parse_clock(text: str | None) -> Clock:
    """Clock from its setting: empty is real time, an ISO instant with zone is frozen, an ISO duration (`-P1000DT2H`) is an offset.

    Raises:
        ValueError: The text is none of these, or the instant has no time zone.
    """
    if not text:
        return SystemClock()
    allowed = "allowed: an instant with zone (2018-12-31T22:00:00Z), a duration (-P1000D, -P1DT2H30M), or nothing for real time"
    if match := ISO_DURATION.match(text):
        parts = {name: int(match[name] or 0) for name in ("days", "hours", "minutes")}
        return SystemClock((-1 if match["sign"] == "-" else 1) * timedelta(**parts))
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"clock {text!r} is neither an instant nor a duration; {allowed}") from None
    if instant.tzinfo is None:
        raise ValueError(f"clock {text!r} has no time zone; {allowed}")
    return FrozenClock(instant.astimezone(UTC))


def cron_complaint(text: str) -> str | None:
    """What is wrong with a five-field cron expression of numbers, `*`, `a-b`, `/n` and lists; None when it can be scheduled."""
    fields = text.split()
    if len(fields) != len(CRON_BOUNDS):
        return f"{text!r} is not a five-field cron expression"
    for field, (name, (low, high)) in zip(fields, CRON_BOUNDS.items(), strict=True):
        for part in field.split(","):
            match = CRON_FIELD.match(part)
            first, last = (int(match[end]) if match and match[end] else None for end in ("first", "last"))
            if match is None or not low <= (low if first is None else first) <= (high if last is None else last) <= high:
                return f"{text!r} is not a cron expression: {name} {part!r} is not within {low}-{high}"
    return None


def instant(moment: datetime) -> str:
    """An instant (UTC) for people, to the minute, such as `2018-12-31 21:00Z`."""
    return f"{moment:%Y-%m-%d %H:%M}Z"


def duration(span: timedelta) -> str:
    """A duration in its natural units, to the minute, such as `30 d` or `1 h 30 min`."""
    minutes = span // timedelta(minutes=1)
    parts = ((minutes // 1440, "d"), (minutes % 1440 // 60, "h"), (minutes % 60, "min"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "under a minute"
