"""References of what restarts with a session, by loops over sessions; they know nothing of the columns that the block accumulates."""

from collections.abc import Callable
from datetime import date, datetime

import numpy as np
import talib

from featurestore_dagster.calendars import calendar
from featurestore_dagster.indicators import intraday
from tests.unit.indicators.oracle import Oracle
from tests.unit.indicators.series import RealSeries, Values

DAILY, HOURLY = "AAPL by session", "EURUSD by session"


def _sessions(series: RealSeries) -> list[list[int]]:
    """Rows of each session, in order."""
    found: dict[date, list[int]] = {}
    for row, session in enumerate(series.frame["session"].to_list()):
        found.setdefault(session, []).append(row)
    return [found[session] for session in sorted(found)]


def _running(of: Callable[[RealSeries], Values]) -> Callable[[RealSeries], Values]:
    """Sums since the first row of each session."""
    return lambda series: np.concatenate([np.cumsum(of(series)[rows]) for rows in _sessions(series)])


def _volume(series: RealSeries) -> Values:
    return series.column("raw_volume")


def _dollars(series: RealSeries) -> Values:
    return (series.column("raw_high") + series.column("raw_low") + series.column("raw_close")) / 3 * _volume(series)


def _vwap(series: RealSeries) -> Values:
    return _running(_dollars)(series) / _running(_volume)(series)


def _volume_ratio(series: RealSeries) -> Values:
    """Cumulative volume over its mean by the same minute, bars of the 20 sessions before counted one by one."""
    market, times = calendar(series.calendar), series.frame["event_timestamp"].to_list()
    cumulative, minutes = _running(_volume)(series), series.column("session_minute")
    sessions = _sessions(series)
    found = np.full(len(times), np.nan)
    hours = {label: market.session(label) for label in series.frame["session"].unique()}
    for place, rows in enumerate(sessions):
        closes: datetime = hours[series.frame["session"][rows[0]]].closes
        for row in rows:
            before = [
                sum(_volume(series)[r] for r in earlier if minutes[r] <= minutes[row] or times[row] == closes)
                for earlier in sessions[place - 20 : place]
            ]
            if len(before) == 20 and sum(before):
                found[row] = cumulative[row] / (sum(before) / 20)
    return found


SESSION_ORACLES = (
    Oracle(intraday.vwap.feature(), _vwap, rtol=1e-12, series=(DAILY, HOURLY)),
    Oracle(intraday.session_volume.feature("volume_so_far"), _running(_volume), series=(DAILY, HOURLY)),
    Oracle(intraday.volume_ratio.feature(), _volume_ratio, rtol=1e-15, series=(DAILY, HOURLY)),
    *(
        Oracle(
            intraday.official_close.feature(f"official_close_{k}", k=k),
            lambda s, k=k: np.concatenate([np.full(k - 1, np.nan), s.column("close")[: s.frame.height - k + 1]]),
            series=(DAILY,),
        )
        for k in (1, 5, 20)
    ),
    *(
        Oracle(
            intraday.session_return.feature(f"returns_{k}d", k=k),
            lambda s, k=k: talib.ROCP(s.column("close"), k),
            atol=2.3e-16,
            series=(DAILY,),
        )
        for k in (1, 5, 20)
    ),
)
