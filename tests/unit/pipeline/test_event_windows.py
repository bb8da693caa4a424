"""Event windows against a brute-force reading of the rule at every instant, and by hand."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore_dagster.indicators.sentiment import window
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.blocks.events import event_windows, watermark
from tests.unit.indicators.event_oracles import REFERENCES

FEATURES = [feature for feature, _ in REFERENCES]
ONE_HOUR = [feature for feature in FEATURES if window(feature) == timedelta(hours=1)]
NOON = datetime(2024, 3, 5, 12, tzinfo=UTC)
TICK, MINUTE, HOUR, DAY = timedelta(microseconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SIMULATED, STALE = QualityFlag.SIMULATED.value, QualityFlag.STALE_INPUT.value
SCHEMA = {
    **dict.fromkeys(("event_id", "symbol", "source_type", "headline_hash", "firm"), pl.String),
    **dict.fromkeys(("score", "confidence", "rating"), pl.Float64),
    **dict.fromkeys(("event_timestamp", "known_at"), UTC_MICROSECONDS),
    "flags": pl.Int64,
}
Version = dict[str, Any]


def version(published_at: datetime, late: timedelta = timedelta(0), /, **other: Any) -> Version:
    """A row of raw.events, known `late` after its publication; other columns by name."""
    usual = {"event_id": "e1", "symbol": "AAA", "source_type": "news", "headline_hash": None, "score": 0.5, "confidence": 0.5}
    return {"firm": None, "rating": None, "event_timestamp": published_at, "known_at": published_at + late, "flags": 0} | usual | other


def heartbeat(at: datetime) -> Version:
    """A sign of life of the feed."""
    return version(at, event_id="heartbeat", symbol="*", source_type="heartbeat", score=None, confidence=None)


def computed(asked: Sequence[tuple[str, datetime]], versions: Sequence[Version], *, features: Any = FEATURES) -> pl.DataFrame:
    """The block's answer at each symbol and instant."""
    rows = pl.DataFrame(list(asked), schema={"symbol": pl.String, "event_timestamp": UTC_MICROSECONDS}, orient="row")
    return event_windows(features, rows.with_row_index("label"), pl.DataFrame(list(versions), schema=SCHEMA))


def at(instant: datetime, versions: Sequence[Version], *, alive: bool = True) -> dict[str, Any]:
    """The block's answer for AAA at one instant, by default with a feed that was alive just then."""
    found = computed([("AAA", instant)], [*versions, *([heartbeat(instant)] if alive else [])]).row(0, named=True)
    return {name.removeprefix("value:"): value for name, value in found.items()}


def _rank(row: Version) -> tuple[Any, ...]:
    names = ("event_timestamp", "source_type", "headline_hash")
    carried = row["firm"] if row["rating"] is not None else None
    contents = [*(row[name] for name in names), carried, *(row[name] for name in ("score", "confidence", "rating", "flags"))]
    return (row["known_at"], *((value is not None, value) if value is not None else (False,) for value in contents))


def events_known(symbol: str, instant: datetime, versions: Sequence[Version]) -> list[Version]:
    """The events of a symbol that count at an instant, from nothing but the rows known then."""
    identities: dict[str, list[Version]] = {}
    for row in versions:
        if row["symbol"] == symbol and row["source_type"] != "heartbeat" and row["known_at"] <= instant:
            identities.setdefault(row["event_id"], []).append(row)
    events = []
    for rows in identities.values():
        first, newest = min(rows, key=_rank), max(rows, key=_rank)
        fixed = {name: first[name] for name in ("event_id", "source_type", "headline_hash")}
        firm = first["firm"] if first["rating"] is not None else None
        said = {name: newest[name] for name in ("score", "confidence", "rating", "flags")}
        published_at = first["event_timestamp"]
        usable_at = max(published_at, first["known_at"])
        if published_at <= instant:
            events.append(
                fixed | said | {"firm": firm, "published_at": published_at, "place": (usable_at, published_at, first["event_id"])}
            )
    return [
        event
        for event in events
        if event["headline_hash"] is None
        or not any(
            other["headline_hash"] == event["headline_hash"]
            and abs(other["published_at"] - event["published_at"]) <= DAY
            and other["place"] < event["place"]
            for other in events
        )
    ]


def expected_row(symbol: str, instant: datetime, versions: Sequence[Version]) -> dict[str, Any]:
    """Values, flags and known-at by the rule, one event at a time."""
    usable = [row for row in versions if max(row["event_timestamp"], row["known_at"]) <= instant]
    alive = any(instant - row["event_timestamp"] < 10 * MINUTE for row in usable)
    events = events_known(symbol, instant, versions)

    def within(length: timedelta) -> list[Version]:
        return [event for event in events if instant - length < event["published_at"] <= instant]

    values = {f.name: reference(within(window(f))) if alive else None for f, reference in REFERENCES}
    flags = STALE if not alive else 0
    if alive and len(within(HOUR)) < 3:
        flags |= QualityFlag.LOW_EVENT_COUNT if within(HOUR) else QualityFlag.NO_EVENTS
    confidence = values["sentiment_conf_mean_1h"]
    if confidence is not None and confidence < 0.5:
        flags |= QualityFlag.LOW_SENTIMENT_CONFIDENCE
    if any(event["flags"] & SIMULATED for event in within(180 * DAY)):
        flags |= SIMULATED
    return values | {"flags": int(flags), "known": max((row["known_at"] for row in usable), default=None)}


LENGTHS = [timedelta(0), 10 * MINUTE, HOUR, DAY, 7 * DAY, 180 * DAY]
moments = st.builds(
    lambda length, share, tick: NOON - length + share * 20 * MINUTE + tick * TICK,
    st.sampled_from(LENGTHS),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.integers(-1, 1),
)
versions_drawn = st.builds(
    lambda published_at, late, source_type, **other: version(published_at, late, source_type=source_type, **other),
    moments,
    st.sampled_from([timedelta(0), timedelta(0), TICK, -TICK, 20 * MINUTE, DAY, 7 * DAY, -HOUR]),
    st.sampled_from(["news", "social", "social", "analyst", "heartbeat"]),
    event_id=st.sampled_from(["e1", "e2", "e3", "e4", "e5", "e6", "e7"]),
    symbol=st.sampled_from(["AAA", "AAA", "BBB", "UNKNOWN"]),
    headline_hash=st.sampled_from([None, "h1", "h2"]),
    firm=st.sampled_from([None, "Ash", "Birch"]),
    score=st.sampled_from([None, -1.0, 0.1, 0.3, 1.0]),
    confidence=st.sampled_from([None, 0.0, 0.1, 0.7, 1.0]),
    rating=st.sampled_from([None, 1.0, 3.0, 5.0]),
    flags=st.sampled_from([0, 0, 0, SIMULATED]),
)
asked_drawn = st.lists(st.tuples(st.sampled_from(["AAA", "BBB", "CCC"]), moments), max_size=8)


@settings(max_examples=200, deadline=None)
@given(versions=st.lists(versions_drawn, max_size=24), asked=asked_drawn, alive=st.booleans(), seed=st.integers(0, 99))
def test_windows_are_the_rule_in_any_order(versions: list[Version], asked: list[tuple[str, datetime]], alive: bool, seed: int) -> None:
    rows = [*versions, *(heartbeat(instant) for _, instant in asked if alive)]
    found = computed(asked, rows)
    assert found.select("symbol", "event_timestamp").rows() == asked
    for (symbol, instant), row in zip(asked, found.iter_rows(named=True), strict=True):
        expected = expected_row(symbol, instant, rows)
        assert row["flags:events"] == expected["flags"]
        assert row["known:events"] == expected["known"]
        for feature in FEATURES:
            value = expected[feature.name]
            assert row[f"value:{feature.name}"] == (value if value is None else pytest.approx(value, rel=1e-12, abs=2e-15)), feature.name

    shuffled = random.Random(seed)
    again = computed(shuffled.sample(asked, len(asked)), shuffled.sample(rows, len(rows)))
    keys = ["symbol", "event_timestamp"]
    assert again.drop("label").unique().sort(keys).equals(found.drop("label").unique().sort(keys))


@settings(max_examples=100, deadline=None)
@given(versions=st.lists(versions_drawn, max_size=16), asked=asked_drawn, data=st.data())
def test_duplicates_and_the_future_change_no_bit(versions: list[Version], asked: list[tuple[str, datetime]], data: st.DataObject) -> None:
    values = [f"value:{feature.name}" for feature in FEATURES]
    beats = [heartbeat(instant) for _, instant in asked]
    alone = computed(asked, [*versions, *beats]).select(values)

    original = data.draw(st.sampled_from(versions)) if versions else version(NOON)
    resent = original | {"known_at": original["known_at"] + data.draw(st.sampled_from([timedelta(0), TICK, HOUR]))}
    newest = max((row for row in [*versions, original] if row["event_id"] == original["event_id"]), key=_rank)
    copies = [resent] if newest == original and versions else []
    if asked:
        last = max(instant for _, instant in asked)
        copies += [version(last - HOUR, HOUR + TICK, event_id="late"), version(last + TICK, event_id="later")]
        copies += [version(last - HOUR, HOUR + TICK, event_id=row["event_id"], score=-0.9) for row in versions]
    assert computed(asked, [*versions, *beats, *copies]).select(values).equals(alone)


def test_the_same_window_has_the_same_bits_whatever_went_before() -> None:
    scores = [0.1, 0.7, -0.3, 0.2]
    recent = [version(NOON - number * MINUTE, event_id=f"r{number}", score=score, confidence=0.1) for number, score in enumerate(scores)]
    past = [version(NOON - HOUR - number * MINUTE, event_id=f"p{number}", score=0.9999 / (1 + number)) for number in range(500)]
    asked = [("AAA", NOON)]
    assert computed(asked, [*past, *recent], features=ONE_HOUR).equals(computed(asked, recent, features=ONE_HOUR))


def test_a_window_is_open_on_the_left_and_closed_on_the_right_to_the_microsecond() -> None:
    for length, name, expected in (
        (HOUR, "event_count_1h", [0.0, 1.0, 1.0, 0.0]),
        (DAY, "news_sentiment_1d", [None, 0.5, 0.5, None]),
        (7 * DAY, "news_sentiment_7d", [None, 0.5, 0.5, None]),
    ):
        instants = (NOON - TICK, NOON, NOON + length - TICK, NOON + length)
        assert [at(instant, [version(NOON)])[name] for instant in instants] == expected


def test_an_event_counts_from_when_it_is_known() -> None:
    late = [version(NOON, 20 * MINUTE)]
    assert [at(NOON + after, late)["event_count_1h"] for after in (20 * MINUTE - TICK, 20 * MINUTE, HOUR - TICK, HOUR)] == [0, 1, 1, 0]
    assert at(NOON + 2 * HOUR, [version(NOON, 2 * HOUR)])["event_count_1h"] == 0


def test_a_restated_score_replaces_the_first_from_when_it_is_known() -> None:
    told = [version(NOON, score=0.5), version(NOON, 10 * MINUTE, score=-0.25), version(NOON, 20 * MINUTE, score=None)]
    found = [at(NOON + after, told) for after in (10 * MINUTE - TICK, 10 * MINUTE, 20 * MINUTE)]
    assert [row["sentiment_mean_1h"] for row in found] == [0.5, -0.25, None]
    assert [row["event_count_1h"] for row in found] == [1, 1, 1]


def test_an_event_sent_again_stays_where_it_was_first_published() -> None:
    again = [version(NOON), version(NOON + 90 * MINUTE, score=-0.5)]
    assert at(NOON + 90 * MINUTE, again)["event_count_1h"] == 0
    assert at(NOON + 90 * MINUTE, again)["news_sentiment_1d"] == -0.5


def test_a_repeated_headline_counts_once_within_a_day() -> None:
    def told(apart: timedelta, **other: Any) -> list[Version]:
        return [version(NOON, headline_hash="h"), version(NOON + apart, **{"event_id": "e2", "headline_hash": "h", "score": -0.5} | other)]

    assert at(NOON + MINUTE, told(MINUTE))["sentiment_mean_1h"] == 0.5
    assert at(NOON + DAY, told(DAY))["event_count_1h"] == 0
    assert at(NOON + DAY + TICK, told(DAY + TICK))["event_count_1h"] == 1
    assert at(NOON + MINUTE, told(MINUTE, headline_hash="another"))["event_count_1h"] == 2
    assert at(NOON + MINUTE, told(MINUTE, headline_hash=None))["event_count_1h"] == 2
    assert at(NOON + MINUTE, told(MINUTE, symbol="BBB"))["event_count_1h"] == 1
    first_to_arrive = [version(NOON, 5 * MINUTE, headline_hash="h"), *told(MINUTE)[1:]]
    assert at(NOON + HOUR - TICK, first_to_arrive)["sentiment_mean_1h"] == -0.5


def test_restating_a_repeat_changes_nothing_and_restating_what_it_repeats_counts() -> None:
    told = [version(NOON, headline_hash="h"), version(NOON + MINUTE, event_id="e2", headline_hash="h", score=-0.5)]
    assert at(NOON + 3 * MINUTE, [*told, told[1] | {"known_at": NOON + 2 * MINUTE, "score": 1.0}])["sentiment_mean_1h"] == 0.5
    assert at(NOON + 3 * MINUTE, [*told, told[0] | {"known_at": NOON + 2 * MINUTE, "score": 1.0}])["sentiment_mean_1h"] == 1.0


def test_the_latest_published_rating_of_each_firm_counts() -> None:
    def rated(days: int, firm: str, rating: float | None, late: timedelta = timedelta(0), **other: Any) -> Version:
        return version(
            NOON + days * DAY, late, **{"event_id": f"{firm}{days}", "source_type": "analyst", "firm": firm, "rating": rating} | other
        )

    told = [rated(0, "Ash", 5.0), rated(10, "Ash", 2.0), rated(0, "Birch", 4.0), rated(5, "Ash", 1.0, 15 * DAY)]

    def found(days: int, versions: Sequence[Version]) -> tuple[float | None, float]:
        answer = at(NOON + days * DAY, versions)
        return answer["analyst_rating"], answer["analyst_rating_count"]

    assert [found(days, told) for days in (9, 10, 30, 180, 189, 190)] == [(4.5, 2), (3, 2), (3, 2), (2, 1), (2, 1), (None, 0)]
    assert found(12, [*told, rated(11, "Ash", None)]) == (3, 2)
    withdrawn = told[1] | {"rating": None, "known_at": NOON + 11 * DAY}
    assert found(12, [*told, withdrawn]) == (4, 1)


@pytest.mark.parametrize("sign", ["heartbeat", "event of another symbol"])
def test_a_feed_silent_for_ten_minutes_gives_no_values(sign: str) -> None:
    alive = heartbeat(NOON) if sign == "heartbeat" else version(NOON, symbol="UNKNOWN", event_id="other")
    told = [version(NOON - 30 * MINUTE), alive]
    living = at(NOON + 10 * MINUTE - TICK, told, alive=False)
    assert (living["event_count_1h"], living["flags:events"]) == (1, QualityFlag.LOW_EVENT_COUNT)
    silent = at(NOON + 10 * MINUTE, told, alive=False)
    assert {silent[feature.name] for feature in FEATURES} == {None}
    assert (silent["flags:events"], silent["known:events"]) == (STALE, NOON)


def test_versions_known_at_one_instant_have_one_order() -> None:
    told = [version(NOON, score=score, confidence=confidence) for score in (0.5, -0.5, None) for confidence in (0.25, 0.75)]
    told += [version(NOON - MINUTE, MINUTE, score=-0.9)]
    assert {at(NOON, random.Random(seed).sample(told, len(told)))["sentiment_mean_1h"] for seed in range(20)} == {0.5}


def test_symbols_are_told_apart() -> None:
    told = [version(NOON), version(NOON + HOUR, symbol="BBB"), *(heartbeat(NOON + hours * HOUR) for hours in (1, 2))]
    asked = [(symbol, NOON + hours * HOUR) for symbol in ("AAA", "BBB") for hours in (1, 2)]
    assert computed(asked, told, features=ONE_HOUR)["value:event_count_1h"].to_list() == [0, 0, 1, 0]
    repeated = [
        version(NOON, event_id="e0", headline_hash="h"),
        *(version(NOON, headline_hash="h", symbol=symbol) for symbol in ("AAA", "BBB")),
    ]
    assert computed([("AAA", NOON), ("BBB", NOON)], repeated, features=ONE_HOUR)["value:event_count_1h"].to_list() == [1, 1]


def test_a_late_event_does_not_make_a_living_feed_old() -> None:
    told = [heartbeat(NOON), version(NOON - 30 * MINUTE, 31 * MINUTE)]
    assert at(NOON + 2 * MINUTE, told, alive=False)["event_count_1h"] == 1
    assert at(NOON + 10 * MINUTE, told, alive=False)["flags:events"] == STALE


def test_no_events_at_all() -> None:
    found = at(NOON, [], alive=False)
    assert {found[feature.name] for feature in FEATURES} == {None}
    assert (found["flags:events"], found["known:events"]) == (STALE, None)
    assert computed([], [version(NOON)]).height == 0


def test_flags_by_count_and_confidence() -> None:
    def flags(*confidences: float) -> list[str]:
        told = [version(NOON, event_id=f"e{number}", confidence=confidence) for number, confidence in enumerate(confidences)]
        return QualityFlag.names_of(at(NOON, told)["flags:events"])

    assert flags() == ["NO_EVENTS"]
    assert flags(0.5) == flags(0.5, 0.5) == ["LOW_EVENT_COUNT"]
    assert flags(0.4, 0.5) == ["LOW_EVENT_COUNT", "LOW_SENTIMENT_CONFIDENCE"]
    assert flags(0.5, 0.5, 0.5) == []
    assert flags(0.5, 0.5, 0.4) == ["LOW_SENTIMENT_CONFIDENCE"]
    days = [feature for feature in FEATURES if feature not in ONE_HOUR]
    assert computed([("AAA", NOON)], [heartbeat(NOON)], features=days)["flags:events"].to_list() == [0]


def test_watermark_trails_the_newest_publication() -> None:
    told = pl.DataFrame([version(NOON), version(NOON - HOUR, 2 * HOUR, event_id="e2")], schema=SCHEMA)
    assert watermark(told, 5 * MINUTE) == NOON - 5 * MINUTE
    assert watermark(told.clear(), MINUTE) is None
