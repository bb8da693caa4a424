"""Alerts as they are kept: streaks, silences, and the outbox of messages. What begins or ends a streak belongs to `monitoring.streaks`.

Evaluations come one after another, whatever number of daemons asks for them, and put their messages into the outbox in the transaction that
changes the streaks. A message is claimed by locking its row: no other process sends it meanwhile, and a sender that dies gives it back.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from featurestore_dagster.model.alert import Alert, AlertKind, AlertState, Message, Problem, Silence
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.connection import connect

EVALUATION_LOCK = 7_301_154_922
"""Advisory lock of the evaluation that is under way."""

ALERT_COLUMNS = (
    "alert_id, kind, grouping, subject, state, since, summary, cause, page, facts, opened_at, announced_at, notified_at, escalated_at,"
    " resolved_at"
)
DELIVERY_COLUMNS = (
    "delivery_id, message_key, channel, event, alert_ids, title, body, state, attempts, queued_at, next_attempt_at, give_up_at, sent_at,"
    " last_error"
)


@dataclass(frozen=True)
class Delivery:
    """One message on its way to one channel."""

    delivery_id: int
    message_key: str
    channel: str
    event: str
    alert_ids: list[str]
    title: str
    body: str
    state: str
    attempts: int
    queued_at: datetime
    next_attempt_at: datetime
    give_up_at: datetime
    sent_at: datetime | None
    last_error: str | None


@dataclass(frozen=True)
class Told:
    """A message and its text."""

    message: Message
    title: str
    body: str


@dataclass(frozen=True)
class Claim:
    """A delivery whose row is locked until the claim ends; say what became of it once."""

    delivery: Delivery
    connection: psycopg.Connection[tuple[Any, ...]]

    def sent(self, at: datetime, notified_at: datetime) -> None:
        """The channel took it; its streaks are told at `notified_at` by the evaluations' clock."""
        self._close("sent", at, None)
        self.connection.execute(
            "update ops.alerts set state = case when state = 'open' then 'notified' else state end, notified_at = %s"
            " where alert_id::text = any(%s) and notified_at is null",
            [notified_at, self.delivery.alert_ids],
        )

    def failed(self, error: str, next_attempt_at: datetime | None) -> None:
        """The channel did not take it: to be tried again, or (None) a dead letter."""
        if next_attempt_at is None:
            self._close("dead", None, error)
            return
        self.connection.execute(
            "update ops.alert_deliveries set attempts = attempts + 1, next_attempt_at = %s, last_error = %s where delivery_id = %s",
            [next_attempt_at, error, self.delivery.delivery_id],
        )

    def _close(self, state: str, at: datetime | None, error: str | None) -> None:
        self.connection.execute(
            "update ops.alert_deliveries set state = %s, attempts = attempts + 1, sent_at = %s, last_error = %s where delivery_id = %s",
            [state, at, error, self.delivery.delivery_id],
        )


class Evaluation:
    """The transaction of one evaluation; no other one is under way."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection

    def unresolved(self) -> list[Alert]:
        """Streaks that have not ended, oldest first."""
        return _alerts(self._connection, "where state <> 'resolved' order by alert_id")

    def silences(self, now: datetime) -> list[Silence]:
        """Silences in force."""
        return _silences(self._connection, now)

    def dead_letters(self) -> list[Delivery]:
        """Messages that were given up, oldest first."""
        return _deliveries(self._connection, "dead", limit=None)

    def begin(self, problem: Problem, state: AlertState, now: datetime) -> Alert:
        """Keep a new streak; announced unless it is silenced."""
        announced_at = None if state is AlertState.SILENCED else now
        row = self._connection.execute(
            "insert into ops.alerts (kind, grouping, subject, state, since, summary, cause, page, facts, opened_at, announced_at)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) returning alert_id",
            [
                problem.kind, problem.group, problem.subject, state, problem.since, problem.summary, problem.cause, problem.page,
                Jsonb(dict(problem.facts)), now, announced_at,
            ],
        ).fetchone()  # fmt: skip
        return Alert(int(row[0]), problem, state, now, announced_at)  # type: ignore[index]

    def update(self, alert: Alert) -> None:
        """Keep a streak as it has become."""
        self._connection.execute(
            "update ops.alerts set state = %s, summary = %s, cause = %s, facts = %s, announced_at = %s, escalated_at = %s, resolved_at = %s"
            " where alert_id = %s",
            [
                alert.state, alert.problem.summary, alert.problem.cause, Jsonb(dict(alert.problem.facts)), alert.announced_at,
                alert.escalated_at, alert.resolved_at, alert.alert_id,
            ],
        )  # fmt: skip

    def enqueue(self, told: Told, *, channels: Sequence[str], at: datetime, give_up_after: timedelta) -> None:
        """Put one message up for sending to each channel; what was put up before under its key is not put up again."""
        message = told.message
        ids = [str(alert.alert_id) for alert in message.alerts]
        self._connection.cursor().executemany(
            "insert into ops.alert_deliveries (message_key, channel, event, alert_ids, title, body, state, attempts, queued_at,"
            " next_attempt_at, give_up_at) values (%s, %s, %s, %s, %s, %s, 'pending', 0, %s, %s, %s) on conflict do nothing",
            [(message.key, channel, message.event, ids, told.title, told.body, at, at, at + give_up_after) for channel in channels],
        )


class AlertStore:
    """Streaks, silences and the outbox of one database."""

    def __init__(self, settings: PostgresSettings) -> None:
        """No connection is made before the first call."""
        self.settings = settings

    @contextmanager
    def evaluation(self) -> Iterator[Evaluation]:
        """One evaluation, after those that are under way; kept as a whole when the block ends, or not at all."""
        with connect(self.settings) as connection:
            connection.execute("select pg_advisory_xact_lock(%s)", [EVALUATION_LOCK])
            yield Evaluation(connection)

    @contextmanager
    def claimed(self, now: datetime, longest_wait: timedelta, without: Sequence[str] = ()) -> Iterator[Claim | None]:
        """The oldest message that is to be sent at `now`, locked while the block runs; None when there is none.

        On each channel the messages of a streak come in their order. One that is to wait for more than `longest_wait` was put off by a
        clock that has been set back since. Channels in `without` are passed over.
        """
        with connect(self.settings) as connection, connection.cursor(row_factory=class_row(Delivery)) as cursor:
            cursor.execute(
                f"select {DELIVERY_COLUMNS} from ops.alert_deliveries d where state = 'pending'"  # noqa: S608 - names of ours
                " and (next_attempt_at <= %(now)s or next_attempt_at > %(latest)s) and channel <> all(%(without)s)"
                " and not exists (select from ops.alert_deliveries earlier where earlier.state = 'pending' and earlier.channel = d.channel"
                " and earlier.alert_ids && d.alert_ids and earlier.delivery_id < d.delivery_id)"
                " order by delivery_id limit 1 for update skip locked",
                {"now": now, "latest": now + longest_wait, "without": list(without)},
            )
            delivery = cursor.fetchone()
            yield None if delivery is None else Claim(delivery, connection)

    def alerts(self, *, resolved: bool = False, limit: int = 100) -> list[Alert]:
        """Streaks that have not ended, or with `resolved` all of them; newest first."""
        with connect(self.settings) as connection:
            return _alerts(connection, "where %(resolved)s or state <> 'resolved' order by alert_id desc limit %(limit)s", resolved, limit)

    def deliveries(self, state: str, limit: int = 100) -> list[Delivery]:
        """Messages in a state, oldest first."""
        with connect(self.settings) as connection:
            return _deliveries(connection, state, limit)

    def retry(self, now: datetime, give_up_after: timedelta) -> int:
        """Put dead letters up for sending again; returns their number. The beginning of what has ended is told no more: obsolete."""
        with connect(self.settings) as connection:
            connection.execute(
                "update ops.alert_deliveries set state = 'obsolete' where state = 'dead' and event <> 'resolved' and not exists"
                " (select from unnest(alert_ids) as told (id) left join ops.alerts on alert_id::text = told.id"
                " where alerts.state is distinct from 'resolved')"
            )
            return connection.execute(
                "update ops.alert_deliveries set state = 'pending', next_attempt_at = %s, give_up_at = %s where state = 'dead'",
                [now, now + give_up_after],
            ).rowcount

    def silences(self, now: datetime) -> list[Silence]:
        """Silences in force."""
        with connect(self.settings) as connection:
            return _silences(connection, now)

    def silence(self, name: str, starts_at: datetime, ends_at: datetime, reason: str) -> None:
        """Tell nobody of `name` before `ends_at`; replaces what was said of it."""
        with connect(self.settings) as connection:
            _end_silences(connection, name, starts_at)
            connection.execute(
                "insert into ops.alert_silences (name, starts_at, ends_at, reason) values (%s, %s, %s, %s)",
                [name, starts_at, ends_at, reason],
            )

    def unsilence(self, name: str, now: datetime) -> int:
        """End the silences of a name; returns how many were in force."""
        with connect(self.settings) as connection:
            return _end_silences(connection, name, now)


def _alerts(connection: psycopg.Connection[Any], rest: str, resolved: bool = False, limit: int = 0) -> list[Alert]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(f"select {ALERT_COLUMNS} from ops.alerts {rest}", {"resolved": resolved, "limit": limit})  # noqa: S608 - names of ours
        return [_alert(row) for row in cursor]


def _alert(row: dict[str, Any]) -> Alert:
    problem = Problem(
        AlertKind(row["kind"]), row["grouping"], row["subject"], row["since"], row["summary"], row["cause"], row["page"], row["facts"]
    )
    bare = Alert(row["alert_id"], problem, AlertState(row["state"]), row["opened_at"])
    return replace(bare, **{name: row[name] for name in ("announced_at", "notified_at", "escalated_at", "resolved_at")})


def _deliveries(connection: psycopg.Connection[Any], state: str, limit: int | None) -> list[Delivery]:
    with connection.cursor(row_factory=class_row(Delivery)) as cursor:
        cursor.execute(
            f"select {DELIVERY_COLUMNS} from ops.alert_deliveries where state = %s order by delivery_id limit %s",  # noqa: S608
            [state, limit],
        )
        return cursor.fetchall()


def _silences(connection: psycopg.Connection[Any], now: datetime) -> list[Silence]:
    with connection.cursor(row_factory=class_row(Silence)) as cursor:
        cursor.execute(
            "select silence_id, name, starts_at, ends_at, reason from ops.alert_silences where starts_at <= %(now)s and ends_at > %(now)s"
            " order by ends_at",
            {"now": now},
        )
        return cursor.fetchall()


def _end_silences(connection: psycopg.Connection[Any], name: str, now: datetime) -> int:
    return connection.execute(
        "update ops.alert_silences set ends_at = %(now)s where name = %(name)s and ends_at > %(now)s", {"now": now, "name": name}
    ).rowcount
