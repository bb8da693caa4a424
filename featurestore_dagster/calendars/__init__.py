"""Market calendars: sessions, partition windows, expected bar ends and open-market time.

What counts as late belongs in `serving.freshness`; Dagster's partition definitions are built from here in `orchestration`.
"""

from featurestore_dagster.calendars.exchange_hours import generated_files
from featurestore_dagster.calendars.lookup import calendar
from featurestore_dagster.calendars.market_calendar import MarketCalendar, Session

__all__ = ["MarketCalendar", "Session", "calendar", "generated_files"]
