"""What the partitions of a relation hold, and what a publication changed: gathered from parts of the rows as they are published.

Pure frames; no SQL. Which rows are new is decided in `versions`, how rows are hashed in `fingerprint`.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.projections.relation import Relation
from featurestore_dagster.stores.postgres import fingerprint

CHANGED_KEYS_LISTED = 100
"""A publication that touches more keys than this records the range only."""

FLAG, NULL = "flag:", "null:"


@dataclass(frozen=True)
class Content:
    """One partition: its newest versions, and what this publication added to them.

    Attributes:
        rows_total: Newest versions, of `first_event` to `last_event`; `content_hash` is that of `fingerprint`.
        flags: Rows by flag that is set on any of them.
        null_shares: NULL share by column; None unless it is of a dataset and has rows.
        rows_new: Versions that were added.
        changed: What they touch, for the ledger; empty when nothing was added.
    """

    rows_total: int = 0
    content_hash: str = fingerprint.NO_ROWS
    first_event: datetime | None = None
    last_event: datetime | None = None
    flags: dict[str, int] = field(default_factory=dict)
    null_shares: dict[str, float] | None = None
    rows_new: int = 0
    changed: dict[str, Any] = field(default_factory=dict)


class Contents:
    """Adds up parts; no identity is in two of them."""

    def __init__(self, relation: Relation) -> None:
        """Nothing was published yet."""
        self._relation = relation
        self._published: list[pl.DataFrame] = []
        self._new: list[pl.DataFrame] = []

    def add(self, published: pl.DataFrame, new: pl.DataFrame) -> None:
        """Count a part: the newest version of each identity, and the versions among them that were added."""
        if not published.is_empty():
            self._published.append(self._summed_up(published))
        if not new.is_empty():
            self._new.append(self._changes(new))

    def by_partition(self) -> dict[str, Content]:
        """What was counted, by partition key; partitions without rows are absent."""
        if not self._published:
            return {}
        held = pl.concat(self._published, how="diagonal").group_by("partition_key").agg(
            pl.col("rows_total").sum(), pl.col("first_event").min(), pl.col("last_event").max(),
            pl.col(fingerprint.SUMS).sum(), pl.selectors.starts_with(FLAG, NULL).sum(),
        )  # fmt: skip
        hashes, changes = fingerprint.content_hashes(held), self._all_changes()
        names = {kind: [name for name in held.columns if name.startswith(kind)] for kind in (FLAG, NULL)}
        found = {}
        for line in held.iter_rows(named=True):
            day, total = line["partition_key"], line["rows_total"]
            rows_new, changed = changes.get(day, (0, {}))
            found[day.isoformat()] = Content(
                total,
                hashes[day],
                line["first_event"],
                line["last_event"],
                {name.removeprefix(FLAG): line[name] for name in names[FLAG] if line[name]},
                {name.removeprefix(NULL): line[name] / total for name in names[NULL]} or None,
                rows_new,
                changed,
            )
        return found

    def _sessions(self, rows: pl.DataFrame) -> pl.Series:
        return calendar(self._relation.calendar).session_of(rows["event_timestamp"]).rename("partition_key")

    def _summed_up(self, rows: pl.DataFrame) -> pl.DataFrame:
        event, flags, sessions = pl.col("event_timestamp"), pl.col("flags"), self._sessions(rows)
        counted = [
            pl.len().cast(pl.Int64).alias("rows_total"), event.min().alias("first_event"), event.max().alias("last_event"),
            *((flags & QualityFlag[name].value != 0).sum().alias(FLAG + name) for name in QualityFlag.counts(rows["flags"])),
        ]  # fmt: skip
        if self._relation.schema == "raw":
            counted += [pl.col(name).null_count().alias(NULL + name) for name in self._relation.values]
        sums = fingerprint.content_sums(self._relation, rows, sessions)
        return rows.group_by(sessions).agg(counted).join(sums, on="partition_key")

    def _changes(self, new: pl.DataFrame) -> pl.DataFrame:
        """Per session: new versions, restated ones among them, range, and the keys when they are few."""
        event, sessions = pl.col("event_timestamp"), self._sessions(new)
        keys = pl.struct(pl.col(name).cast(pl.String) for name in self._relation.keys).unique().sort()
        counts = new.group_by(sessions).agg(
            pl.len().alias("rows_new"),
            (pl.col("flags") & QualityFlag.RESTATED.value != 0).sum().alias("restated"),
            event.min().alias("first"),
            event.max().alias("last"),
            pl.struct(self._relation.keys).n_unique().alias("key_count"),
        )
        few = counts.filter(pl.col("key_count") <= CHANGED_KEYS_LISTED)
        listed = new.with_columns(sessions).join(few, on="partition_key", how="semi").group_by("partition_key").agg(keys.alias("keys"))
        return counts.join(listed, on="partition_key", how="left")

    def _all_changes(self) -> dict[Any, tuple[int, dict[str, Any]]]:
        if not self._new:
            return {}
        merged = pl.concat(self._new).group_by("partition_key").agg(
            pl.col("rows_new", "restated", "key_count").sum(), pl.col("first").min(), pl.col("last").max(), pl.col("keys"),
        )  # fmt: skip
        result = {}
        for line in merged.iter_rows(named=True):
            listed = None
            if line["key_count"] <= CHANGED_KEYS_LISTED:
                listed = sorted({tuple(key.values()) for keys in line["keys"] for key in keys})
            first, last = line["first"].isoformat(), line["last"].isoformat()
            changed = {"keys": listed, "start": first, "end": last, "restated": line["restated"]}
            result[line["partition_key"]] = (line["rows_new"], changed)
        return result
