"""Reads while stores die: the same values from every tier, within the deadline, or a refusal that says why."""

import asyncio
import select
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta

import psycopg
import pytest

from featurestore_dagster.errors import (
    InsufficientCoverageError,
    MalformedDataError,
    NoTierAnsweredError,
    RefusedError,
    StoreUnavailableError,
)
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.serving.answer import OnlineFeatures, Status
from featurestore_dagster.serving.ladder import FAILURES_TO_OPEN
from featurestore_dagster.serving.policy import ReadPolicy
from tests.integration.serving.conftest import DAYS, ENTITIES, NOW, REFERENCES, VIEWS, Served
from tests.unit.pipeline.frames import close_of

PATIENT = ReadPolicy(deadline_seconds=20)
BRIEF = ReadPolicy(deadline_seconds=2)
HANG_SECONDS = 30
NEWEST_BAR = close_of(DAYS[-1])
"""Far beyond any deadline used here, far below any hang."""


def tiers(answer: OnlineFeatures) -> set[str]:
    return {state.tier for row in answer.rows for state in row.states}


def content(answer: OnlineFeatures) -> list[object]:
    """Everything but the tier and its flag."""
    fallback = QualityFlag.FALLBACK_SOURCE.value
    return [
        (
            list(row.numbers),
            list(row.statuses),
            [(s.event_microseconds, s.known_microseconds, s.age_microseconds, s.flag_bits & ~fallback) for s in row.states],
        )
        for row in answer.rows
    ]


def test_every_tier_gives_the_same_answer(served: Served) -> None:
    with served.client() as client:
        redis = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        with served.redis() as plain:
            plain.flushall()
        postgres = client.get_online_features(REFERENCES, ENTITIES, policy=PATIENT)
        with ExitStack() as stack:
            for view in VIEWS:
                stack.enter_context(served.locked(view.name))
            raw = client.get_online_features(REFERENCES, ENTITIES, policy=ReadPolicy(deadline_seconds=60))
    assert (tiers(redis), tiers(postgres), tiers(raw)) == ({"redis"}, {"postgres"}, {"raw"})
    assert content(redis) == content(postgres) == content(raw)
    assert redis.rows[0]["daily_ohlcv_stats:close"].status is Status.PRESENT
    assert redis.rows[2]["daily_ohlcv_stats:close"].status is Status.NOT_FOUND
    assert "FALLBACK_SOURCE" in raw.rows[0]["daily_ohlcv_stats:close"].flags


def test_a_large_read_gets_time_for_its_size_and_one_given_too_little_blames_no_store(served: Served) -> None:
    many = ENTITIES * 4_000
    with served.client() as client:
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(NoTierAnsweredError):
                client.get_online_features(REFERENCES, many, policy=ReadPolicy(deadline_seconds=0.01))
        assert client.degraded == ()
        assert tiers(client.get_online_features(REFERENCES, many)) <= {"redis", "postgres"}
        assert client.degraded == ()


def test_a_killed_redis_is_answered_by_postgres_and_comes_back(served: Served) -> None:
    with served.client() as client:
        before = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        served.kill("redis")
        during = [client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF) for _ in range(20)]
        assert {tier for answer in during for tier in tiers(answer)} == {"postgres"}
        assert all(content(answer) == content(before) for answer in during)
        assert client.degraded == ("redis",)
        served.services.start()
        served.sync()
        until = time.monotonic() + 60
        while tiers(client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)) != {"redis"}:
            assert time.monotonic() < until
        assert client.degraded == ()


def test_redis_dead_from_the_start(served: Served) -> None:
    served.kill("redis")
    with served.client() as client:
        assert tiers(client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)) == {"postgres"}


def test_t8_a_frozen_redis_costs_no_more_than_its_share(served: Served) -> None:
    with served.client() as client:
        before = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        with served.frozen("redis"):
            started = time.monotonic()
            during = [client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF) for _ in range(5)]
            assert time.monotonic() - started < HANG_SECONDS
        assert {tier for answer in during for tier in tiers(answer)} == {"postgres"}
        assert all(content(answer) == content(before) for answer in during)


@contextmanager
def slowly(port: int, pause: threading.Event) -> Iterator[int]:
    """A port of loopback behind which Redis answers; while `pause` is set, each answer waits until it no longer is."""

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as server:
                while ready := select.select([self.request, server], [], [])[0]:
                    for end in ready:
                        sent = end.recv(65_536)
                        if not sent:
                            return
                        if end is server:
                            while pause.is_set():
                                time.sleep(0.01)
                            with suppress(OSError):  # the reader may have gone
                                self.request.sendall(sent)
                        else:
                            server.sendall(sent)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as relay:
        relay.daemon_threads = True
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        try:
            yield relay.server_address[1]
        finally:
            pause.clear()
            relay.shutdown()


def test_a_redis_that_answers_slowly_costs_its_share_and_its_late_answers_are_nobodys(served: Served) -> None:
    pause = threading.Event()
    with slowly(served.settings.redis.port, pause) as port:
        behind = served.settings.redis.model_copy(update={"port": port})
        settings = served.settings.model_copy(update={"redis_connection": behind})
        with replace(served, settings=settings).client() as client:
            before = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
            assert tiers(before) == {"redis"}
            pause.set()
            during = [client.get_online_features(REFERENCES, ENTITIES[:number], policy=BRIEF) for number in (1, 2, 3, 1, 2)]
            assert {tier for answer in during for tier in tiers(answer)} == {"postgres"}
            assert content(during[2]) == content(before)
            pause.clear()
            until = time.monotonic() + 60
            while tiers(answer := client.get_online_features(REFERENCES, ENTITIES[1:], policy=BRIEF)) != {"redis"}:
                assert time.monotonic() < until
            assert content(answer) == content(before)[1:]


def test_a_redis_without_memory_refuses_the_sync_and_the_next_one_completes_it(served: Served) -> None:
    with served.client() as client, served.redis() as plain:
        before = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        plain.flushall()
        plain.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreUnavailableError, match="OOM"):
                served.sync()
            without = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        finally:
            plain.config_set("maxmemory", 0)
        assert (tiers(without), content(without)) == ({"postgres"}, content(before))
        served.sync()
        after = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        assert (tiers(after), content(after)) == ({"redis"}, content(before))


def test_with_every_store_frozen_the_refusal_comes_in_time_and_no_thread_stays(served: Served) -> None:
    with served.client() as client:
        client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        threads = threading.active_count()

        def refused(_: int) -> str:
            with pytest.raises(NoTierAnsweredError) as refusal:
                client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
            return str(refusal.value)

        with served.frozen("redis", "postgres"):
            started = time.monotonic()
            with ThreadPoolExecutor(16) as pool:
                refusals = list(pool.map(refused, range(48)))
            assert time.monotonic() - started < HANG_SECONDS
            assert threading.active_count() <= threads + 2  # one computation from raw data, and one connection being made
        assert all("redis: " in refusal and "postgres: " in refusal for refusal in refusals)
        until = time.monotonic() + 60
        while True:
            try:
                answer = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
            except NoTierAnsweredError:
                assert time.monotonic() < until
            else:
                break
        assert answer.rows[0]["daily_ohlcv_stats:close"].status is Status.PRESENT


def test_a_flushed_redis_is_not_believed(served: Served) -> None:
    with served.client() as client:
        before = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        with served.redis() as plain:
            plain.flushall()
        flushed = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        assert (tiers(flushed), content(flushed)) == ({"postgres"}, content(before))
        served.sync()
        assert tiers(client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)) == {"redis"}


def test_a_redis_put_back_to_an_older_snapshot_is_not_believed(served: Served) -> None:
    with served.client() as client:
        client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        with served.redis() as plain:
            for key in plain.scan_iter("featurestore:publication:*"):
                version, _, number = plain.get(key).partition(b":")
                plain.set(key, b"%b:%d" % (version, int(number) - 5))
        assert tiers(client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)) == {"postgres"}
        served.sync()
        assert tiers(client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)) == {"redis"}


def test_a_reader_whose_clock_is_behind_sees_what_was_known_by_its_clock(served: Served) -> None:
    behind = NOW - timedelta(days=5)
    with served.client(behind) as client:
        answer = client.get_online_features(REFERENCES, ENTITIES, policy=PATIENT)
        assert tiers(answer) == {"postgres"}
        event = answer.rows[0]["daily_ohlcv_stats:close"].event_timestamp
        assert event is not None
        assert event <= behind
    with served.client() as client:
        assert content(client.get_online_features(REFERENCES, ENTITIES, as_of_timestamp=behind, policy=PATIENT)) == content(answer)


def test_one_view_that_redis_does_not_know_is_asked_of_postgres_alone(served: Served) -> None:
    with served.client() as client, served.redis() as plain:
        before = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        for key in plain.scan_iter(f"featurestore:publication:{VIEWS[1].name}*"):
            plain.delete(key)
        answer = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        assert [state.tier for state in answer.rows[0].states] == ["redis", "postgres"]
        assert content(answer) == content(before)
        with served.frozen("postgres"):
            partial = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
            assert [state.tier for state in partial.rows[0].states] == ["redis", "none"]
            assert partial.rows[0].statuses[-1] is Status.NOT_FOUND
            with pytest.raises(NoTierAnsweredError, match=VIEWS[1].name):
                client.get_online_features(REFERENCES, ENTITIES, policy=ReadPolicy(deadline_seconds=2, fail_closed=True))


def test_too_little_coverage_is_refused_by_name(served: Served) -> None:
    with served.client() as client:
        references = ["daily_ohlcv_stats:close", "daily_ohlcv_stats:open"]
        assert client.get_online_features(references, ENTITIES[:2], policy=ReadPolicy(deadline_seconds=2, min_coverage=1)).rows
        with pytest.raises(InsufficientCoverageError, match=r"66\.7%.*nobody daily_ohlcv_stats:close \(NOT_FOUND\)"):
            client.get_online_features(references, ENTITIES, policy=ReadPolicy(deadline_seconds=2, min_coverage=0.9))


def test_a_greatest_age_of_the_caller_withholds_older_values(served: Served) -> None:
    with served.client() as client:
        reference = "daily_ohlcv_stats:close"
        aged = served.client(NOW + timedelta(days=4))  # the market was open on two of these days
        assert (
            client.get_online_features([reference], ENTITIES[:1], policy=ReadPolicy(deadline_seconds=2, max_age=timedelta(hours=1)))
            .rows[0][reference]
            .value
        )
        value = aged.get_online_features([reference], ENTITIES[:1], policy=ReadPolicy(deadline_seconds=2, max_age=timedelta(hours=1))).rows[
            0
        ][reference]
        assert (value.value, value.status) == (None, Status.OUTSIDE_MAX_AGE)
        assert aged.get_online_features([reference], ENTITIES[:1], policy=BRIEF).rows[0][reference].status is Status.PRESENT
        aged.close()


def test_the_asynchronous_client_answers_the_same_also_while_stores_die(served: Served) -> None:
    with served.client() as client:
        expected = client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
        past = client.get_online_features(REFERENCES, ENTITIES, as_of_timestamp=NOW - timedelta(days=5), policy=PATIENT)

    async def reads() -> None:
        async with served.async_client() as client:
            assert content(await client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)) == content(expected)
            assert content(await client.get_online_features(REFERENCES, ENTITIES, NOW - timedelta(days=5), PATIENT)) == content(past)
            with served.frozen("redis"):
                started = time.monotonic()
                answers = await asyncio.gather(*(client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF) for _ in range(5)))
                assert time.monotonic() - started < HANG_SECONDS
            assert all(tiers(answer) == {"postgres"} and content(answer) == content(expected) for answer in answers)
            with served.frozen("redis", "postgres"):
                started = time.monotonic()
                refused = await asyncio.gather(
                    *(client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF) for _ in range(20)), return_exceptions=True
                )
                assert time.monotonic() - started < HANG_SECONDS
            assert all(isinstance(refusal, NoTierAnsweredError) for refusal in refused)
            until = time.monotonic() + 60
            while True:
                try:
                    answer = await client.get_online_features(REFERENCES, ENTITIES, policy=BRIEF)
                except NoTierAnsweredError:
                    assert time.monotonic() < until
                    await asyncio.sleep(0.1)
                else:
                    break
            assert content(answer) == content(expected)

    asyncio.run(reads())


def test_raw_data_are_asked_for_what_the_view_is_about_whatever_else_a_row_holds(served: Served) -> None:
    entity = {"portfolio": "GLOBAL", "symbol": ["AAA"]}
    with (
        served.client() as client,
        served.locked("portfolio_macro_features"),
        pytest.raises(NoTierAnsweredError, match="macro_series"),  # what it is computed from, which was not delivered here
    ):
        client.get_online_features(["portfolio_macro_features:spy_return_1d"], [entity], policy=BRIEF)  # type: ignore[list-item]


def test_a_policy_that_is_none_is_refused(served: Served) -> None:
    with served.client() as client, pytest.raises(MalformedDataError, match="a ReadPolicy is needed"):
        client.get_online_features(REFERENCES, ENTITIES, policy=None)  # type: ignore[arg-type]


def test_nothing_was_known_before_the_calendars_begin(served: Served) -> None:
    with served.client() as client:
        for then in ("1990-01-01T00:00:00Z", "1985-06-01T00:00:00Z"):
            answer = client.get_online_features(REFERENCES, ENTITIES, datetime.fromisoformat(then))
            assert {status for row in answer.rows for status in row.statuses} == {Status.NOT_FOUND}


def test_reads_are_counted(served: Served) -> None:
    with served.client() as client:
        client.get_online_features(["daily_ohlcv_stats:close"], ENTITIES, policy=BRIEF)
        with pytest.raises(InsufficientCoverageError):
            client.get_online_features(["daily_ohlcv_stats:close"], ENTITIES, policy=ReadPolicy(deadline_seconds=2, min_coverage=1))
        counted = client.get_retrieval_stats(window_minutes=5)
    assert (counted.reads, counted.statuses, counted.tiers) == (2, {"PRESENT": 2, "NOT_FOUND": 1}, {"redis": 3})
    assert (counted.errors, counted.violations) == ({"InsufficientCoverageError": 1}, 0)
    assert counted.null_rate == pytest.approx(1 / 3)
    assert counted.latency_p50_milliseconds == counted.latency_p99_milliseconds


def test_coverage_counts_eligible_cells_only(served: Served) -> None:
    with served.client() as client:
        found = client.validate_feature_coverage(
            ["daily_ohlcv_stats:close", "momentum_features:momentum_12m"], ENTITIES, tier=None, policy=BRIEF
        )
    close, year = found.features
    assert (close.eligible, close.present, close.is_met) == (2, 2, True)  # nobody is listed nowhere
    assert (year.eligible, year.coverage, year.is_met) == (0, None, None)  # six weeks are no warm-up for twelve months
    assert (found.is_met, found.not_judged) == (True, ("nobody",))


def test_coverage_that_judged_nothing_is_not_met(served: Served) -> None:
    with served.client() as client:
        for entity, tier in (("nobody", None), ("AAA", 1)):
            found = client.validate_feature_coverage(REFERENCES, [{"symbol": entity}], tier, policy=BRIEF)
            assert (found.is_met, found.not_judged) == (None, (entity,))
        for unknown in (9, "1", -5):
            with pytest.raises(RefusedError, match="allowed: 1, 2"):
                client.validate_feature_coverage(REFERENCES, ENTITIES, unknown, policy=BRIEF)  # type: ignore[arg-type]


def test_a_coherent_vector_is_of_one_bar_whichever_store_answers(served: Served) -> None:
    """A bar of which only the first view was written yet."""
    coherent = ReadPolicy(deadline_seconds=2, coherent=True)
    with served.client() as client:
        late = VIEWS[1].name
        assert tiers(client.get_online_features(REFERENCES, ENTITIES, policy=coherent)) == {"redis"}
        with psycopg.connect(served.settings.postgres.conninfo) as connection:
            connection.execute(f"create table features.kept as select * from features.{late} where event_timestamp = %s", [NEWEST_BAR])
            connection.execute(f"delete from features.{late} where event_timestamp = %s", [NEWEST_BAR])
        try:
            with served.redis() as plain:
                plain.flushall()
            mixed = client.get_online_features(REFERENCES, ENTITIES[:1], policy=BRIEF).rows[0]
            assert len({state.event_timestamp for state in mixed.states}) == 2
            row = client.get_online_features(REFERENCES, ENTITIES[:1], policy=coherent).rows[0]
            assert {state.event_timestamp for state in row.states} == {close_of(DAYS[-2])}
            served.sync()
            assert [state.tier for state in client.get_online_features(REFERENCES, ENTITIES[:1], policy=coherent).rows[0].states] == [
                "postgres"
            ] * 2
        finally:
            with psycopg.connect(served.settings.postgres.conninfo) as connection:
                connection.execute(f"insert into features.{late} select * from features.kept")
                connection.execute("drop table features.kept")
