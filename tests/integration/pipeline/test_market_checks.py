"""Checks that need what was published before: read back from Postgres, over separate runs."""

from datetime import timedelta

import polars as pl

from featurestore_dagster.model.flags import QualityFlag
from tests.integration.pipeline.conftest import Deployment
from tests.unit.pipeline.frames import EQUITIES, LISTED, MONDAY, bar, close_of, keys_between, session_bars

DAYS = keys_between("2018-08-01", "2018-12-14")
SYMBOLS = list(LISTED)


def _names(deployment: Deployment, key: str) -> dict[str, bool]:
    (outcome,) = deployment.ingest(key)
    assert outcome.audit is not None
    return {check.name.partition(":")[0]: check.blocking for check in outcome.audit.failed}


def test_an_outlier_is_taken_back_when_the_next_session_reverts_it(deployment: Deployment) -> None:
    """Before, its price was what was known; from the re-run on, it is no price."""
    spike, after = DAYS[-2:]
    others = session_bars(DAYS, SYMBOLS[1:])
    quiet = [bar(day, close=100.0 + number * number * 13 % 11 / 5, high=103.0, volume=1000.0 + number) for number, day in enumerate(DAYS)]
    quiet[-2] |= {"close": 130.0, "high": 130.0}
    deployment.deliver([*others, *quiet])
    deployment.clock.instant = close_of(spike) + timedelta(hours=3)
    deployment.ingest(*DAYS[:-1])
    (first,) = deployment.bars().filter(pl.col("event_timestamp") == close_of(spike), symbol="AAA").rows(named=True)
    assert (first["close"], first["flags"]) == (130.0, 0)
    deployment.clock.instant = close_of(after) + timedelta(hours=3)
    assert _names(deployment, after) == {"reverted_outlier": False}
    known_then = deployment.clock.instant
    deployment.clock.advance(minutes=1)
    assert _names(deployment, spike) == {}
    (second,) = deployment.bars().filter(pl.col("event_timestamp") == close_of(spike), symbol="AAA").rows(named=True)
    assert (second["close"], second["flags"], second["known_at"]) == (130.0, QualityFlag.OUTLIER.value, deployment.clock.instant)
    assert deployment.bars(as_of=known_then).filter(pl.col("event_timestamp") == close_of(spike), symbol="AAA")["flags"].to_list() == [0]
    assert _names(deployment, spike) == {}
    assert not deployment.ledger.quarantined()


def test_a_provider_that_repeats_yesterday_is_blocked_run_after_run(deployment: Deployment) -> None:
    yesterday, today = keys_between("2018-11-30", MONDAY)
    published = session_bars([yesterday])
    again = [row | {"event_timestamp": close_of(today), "known_at": close_of(today)} for row in published]
    deployment.deliver([*published, *again])
    assert _names(deployment, yesterday) == {}
    assert _names(deployment, today) == {"stuck_feed": True}
    assert deployment.bars().height == 5
    deployment.deliver(session_bars([yesterday, today]))
    assert _names(deployment, today) == {}


def test_prices_in_cents_and_missing_volumes_are_blocked_against_what_was_published(deployment: Deployment) -> None:
    today, before = DAYS[-1], DAYS[-4:-1]
    deployment.deliver(session_bars(before))
    deployment.ingest(*before)
    cents = {name: value * 100 for name, value in (("open", 100.0), ("high", 102.0), ("low", 99.0), ("close", 101.0))}
    deployment.deliver(session_bars([today], **cents))
    assert _names(deployment, today)["units"]
    deployment.deliver([row | {"volume": None} for row in session_bars([today])])
    assert _names(deployment, today) == {"mostly_null": True}
    deployment.deliver(session_bars([today]))
    assert _names(deployment, today) == {}


def test_instants_in_another_unit_block_the_partition_and_nothing_raises(deployment: Deployment) -> None:
    deployment.deliver(session_bars([MONDAY]))
    rows = deployment.delivered[EQUITIES.name]
    wrong = rows.with_columns((pl.col("event_timestamp").to_physical() // 1000).cast(pl.Datetime("us", "UTC")))
    deployment.fetch = lambda *_: wrong  # type: ignore[method-assign] - a provider does not know that its unit is wrong
    assert _names(deployment, MONDAY) == {"epoch_unit": True}
    assert deployment.bars().is_empty()
