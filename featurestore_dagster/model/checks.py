"""What the audit before publication judges, for people. How a check is computed does not belong here (see package `pipeline`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckMeaning:
    """A check's name as it appears in reasons and metadata, its rule, and what becomes of what fails it."""

    name: str
    rule: str
    action: str


BLOCKS, QUARANTINES, REPORTS = "blocks the partition", "quarantines the row", "is reported"

CHECK_MEANINGS = (
    CheckMeaning("schema", "a column is missing, undeclared or of another type", BLOCKS),
    CheckMeaning("epoch_unit", "event times are no instants: another unit of time, or outside what the calendar knows", BLOCKS),
    CheckMeaning("empty_partition", "the session was open, rows are due, and none came", BLOCKS),
    CheckMeaning(
        "row_count", "less than 80 % or more than 120 % of the expected rows came", "blocks the partition below 50 %, else is reported"
    ),
    CheckMeaning("stale_partition", "the newest row is older than the calendar says", BLOCKS),
    CheckMeaning("mostly_quarantined", "a larger share of the rows is bad than the dataset allows", BLOCKS),
    CheckMeaning("mostly_null", "a column is NULL in more than 20 % of the rows, and three times as often as usual", BLOCKS),
    CheckMeaning("units", "most prices are fifty times those before, or a fiftieth", BLOCKS),
    CheckMeaning("future_rows", "more than 1 % of the rows lie in the future: the source's clock or time zone is wrong", BLOCKS),
    CheckMeaning("calendar_gap", "some expected rows are missing", REPORTS),
    CheckMeaning("cross_source", "two sources have different closes for one bar", "is reported; the preferred source is taken"),
    CheckMeaning("cross_source_volume", "the volumes of two sources are in different units", REPORTS),
    CheckMeaning("reverted_outlier", "the next bar takes an outlier back: it was no price", "is reported; the bar is withdrawn"),
    CheckMeaning("duplicate_key", "the same key and known-at came twice with different values", "quarantines both rows"),
    CheckMeaning("duplicate_event", "one event id at two times", QUARANTINES),
    CheckMeaning("future_row", "the event time lies after the clock", QUARANTINES),
    CheckMeaning("known_at", "known before it happened, or before the version that it should replace", QUARANTINES),
    CheckMeaning("ohlc_order", "the low is above, or the high below, the open or the close", QUARANTINES),
    CheckMeaning("out_of_session", "no bar of the calendar ends then", QUARANTINES),
    CheckMeaning("timeframe", "the row says another timeframe than its dataset's", QUARANTINES),
    CheckMeaning("unknown_symbol", "the symbol is not listed for the dataset", QUARANTINES),
    CheckMeaning(
        "stuck_feed", "the bar repeats its predecessor too often in a row, or most bars repeat the session before", "quarantines or blocks"
    ),
    CheckMeaning(
        "split_like_jump",
        "the price jumps by the ratio of a split, on ordinary turnover, and no corporate action says so",
        "quarantines the series until the action is entered",
    ),
    CheckMeaning("flags", "the row carries a flag that keeps it out", QUARANTINES),
    CheckMeaning("source_type", "an event is none of news, social, analyst and heartbeat", QUARANTINES),
    CheckMeaning("score", "a sentiment outside -1 to 1", QUARANTINES),
    CheckMeaning("confidence", "a confidence outside 0 to 1", QUARANTINES),
    CheckMeaning("rating", "an analyst's rating outside 1 to 5", QUARANTINES),
    CheckMeaning("finite", "the value is NaN or infinite", QUARANTINES),
    CheckMeaning("at_least", "the value is below the declared range", QUARANTINES),
    CheckMeaning("at_most", "the value is above the declared range", QUARANTINES),
)
