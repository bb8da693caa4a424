"""The propagation sensor: whatever was published, the views that read it follow, once.

New data, late data, corrections and replayed rows look alike in the ledger: a publication with a greater id than those that a dependent
read. What is stale is decided in `pipeline.staleness`; a request is a row of `ops.restatements` before Dagster hears of it, so that a
sensor killed anywhere repeats it and loses nothing. ADR 0001 says why this is no declarative automation.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from heapq import nlargest
from itertools import accumulate, groupby, pairwise

import dagster as dg
import polars as pl
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.dagster_run import FINISHED_STATUSES, IN_PROGRESS_RUN_STATUSES, NOT_FINISHED_STATUSES, RunRecord
from dagster._core.storage.tags import PRIORITY_TAG

from featurestore_dagster.calendars import MarketCalendar, calendar
from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.orchestration.jobs import MarketPath, paths
from featurestore_dagster.orchestration.live_runs import end_abandoned
from featurestore_dagster.orchestration.partitions import range_tags
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.schedules import longest_lag
from featurestore_dagster.pipeline.inputs import BEGINNING
from featurestore_dagster.pipeline.staleness import MART_SOURCE, Staleness, StaleStream, reads
from featurestore_dagster.projections.relation import dataset_relation, stream_relation
from featurestore_dagster.stores.postgres.restatements import (
    DONE,
    FAILED,
    REQUESTED,
    WAITING,
    Restatement,
    Restatements,
    as_causes,
)

PROPAGATION_SECONDS = 1
"""Dagster's daemon looks every five seconds; less than that is said so that it never waits for a second look."""

WATCH_SECONDS = 4.0
"""Of the five seconds between two looks of the daemon, a tick with nothing to do waits so many for something."""

LONGEST_SESSIONS = 1_000
"""A request for more stale sessions than this is a backfill: it waits for a person who has seen its preview."""

MOST_BLOCKS = 10
"""Of a path's requests per look; beyond, those closest to each other share a range: a run skips what is current."""

ATTEMPTS = 3
PROPAGATION_TAG = "propagation"
"""On every run of this sensor; `dagster.yaml` lets one of them run at a time, so that live bars always find a slot."""

RESTATEMENT_TAG = "restatement"
CATCH_UP_TAG = "catch_up"
CATCH_UP_DAYS = 45
"""An outage is looked for this far back: a market without any session in that time was not left by an outage."""

SYNC_AGAIN_SECONDS = 600

PROPAGATION_PRIORITY = "5"
"""In Dagster's queue: after live bars, before backfills."""


@dataclass(frozen=True)
class Block:
    """Stale sessions, ascending, and the streams that one run computes from the first to the last of them."""

    partitions: tuple[str, ...]
    streams: tuple[tuple[FeatureView, Stream], ...]


def blocks(stale: Iterable[StaleStream]) -> list[Block]:
    """One block for each set of streams that are stale in the same consecutive sessions, the first sessions first.

    A view that joins others is computed in the run that computes them, where sessions of both overlap or adjoin: a run of its own could
    come too early. More than `MOST_BLOCKS` are joined where the fewest sessions lie between them.

    Args:
        stale: Streams of one calendar.
    """
    parts = list(stale)
    if not parts:
        return []
    first, last = min(part.partitions[0] for part in parts), max(part.partitions[-1] for part in parts)
    sessions = calendar(parts[0].stream.calendar).sessions(date.fromisoformat(first), date.fromisoformat(last))["session"]
    position = {day.isoformat(): number for number, day in enumerate(sessions)}
    streams: dict[tuple[str, ...], list[tuple[FeatureView, Stream]]] = {}
    for part in parts:
        for together in _consecutive(part.partitions, position):
            streams.setdefault(together, []).append((part.view, part.stream))
    found = [Block(together, tuple(pairs)) for together, pairs in sorted(streams.items())]
    for joined in {part.view.label: part.view for part in parts if part.view.members}.values():
        family = {joined.label, *(member.label for member in joined.members)}
        mine, others = list[Block](), list[Block]()
        for block in found:
            (mine if any(view.label in family for view, _ in block.streams) else others).append(block)
        apart = [at for at, gap in _gaps(mine, position).items() if gap > 1]
        found = sorted([*others, *_merged(mine, apart)], key=lambda block: block.partitions)
    found = _merged(found, [at for at in range(1, len(found)) if found[at].partitions != found[at - 1].partitions])
    gaps = _gaps(found, position)
    return _merged(found, nlargest(MOST_BLOCKS - 1, gaps, key=gaps.__getitem__))


def _consecutive(partitions: Sequence[str], position: Mapping[str, int]) -> list[tuple[str, ...]]:
    numbered = enumerate(key for key in partitions if key in position)
    return [tuple(key for _, key in run) for _, run in groupby(numbered, lambda pair: position[pair[1]] - pair[0])]


def _gaps(ordered: Sequence[Block], position: Mapping[str, int]) -> dict[int, int]:
    """By index of each block but the first: sessions from the last of all before it to its first; 1 when they adjoin."""
    reached = accumulate((position[block.partitions[-1]] for block in ordered), max)
    return {at: position[block.partitions[0]] - before for at, (block, before) in enumerate(zip(ordered[1:], reached, strict=False), 1)}


def _merged(ordered: Sequence[Block], cuts: Iterable[int]) -> list[Block]:
    """Blocks between two cuts become one."""
    merged = []
    for start, end in pairwise(sorted({0, *cuts, len(ordered)})):
        partitions = {key for block in ordered[start:end] for key in block.partitions}
        streams = {stream_relation(*pair).name: pair for block in ordered[start:end] for pair in block.streams}
        merged.append(Block(tuple(sorted(partitions)), tuple(streams.values())))
    return merged


def build_propagation_sensor(
    catalogue: Catalogue, jobs: Mapping[str, UnresolvedAssetJobDefinition], watch_seconds: float = WATCH_SECONDS
) -> dg.SensorDefinition:
    """Requests what publications made stale, what an earlier request did not finish, sessions that nobody ran, and syncs that Redis lacks.

    Args:
        catalogue: Says who reads what.
        jobs: Path jobs by name.
        watch_seconds: How long a tick that finds nothing waits for a publication.
    """

    def evaluate(
        context: dg.SensorEvaluationContext, platform: Platform, restatements: Restatements, cursor: str | None
    ) -> dg.SensorResult:
        tick = _Tick(context, platform, catalogue, restatements)
        seen: dict[str, int] = json.loads(cursor or "{}")
        end_abandoned(context.instance)
        requests = [*tick.follow_up(), *tick.propagate(seen), *tick.catch_up()] or tick.sync()
        return dg.SensorResult(run_requests=requests, skip_reason=None if requests else "nothing is stale", cursor=json.dumps(seen))

    @dg.sensor(
        name="propagation_sensor",
        minimum_interval_seconds=PROPAGATION_SECONDS,
        jobs=list(jobs.values()),
        description="Computes again what was computed from other inputs than the published ones, and runs sessions that were missed",
    )
    def propagation_sensor(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        restatements = Restatements(platform.settings.postgres)
        looked_at = restatements.newest_publication()
        result = evaluate(context, platform, restatements, context.cursor)
        if not result.run_requests and restatements.await_publication(looked_at, watch_seconds):
            return evaluate(context, platform, restatements, result.cursor)
        return result

    return propagation_sensor


@dataclass(frozen=True)
class _Tick:
    context: dg.SensorEvaluationContext
    platform: Platform
    catalogue: Catalogue
    restatements: Restatements

    # Propagation ----------------------------------------------------------------------------------------------------------------------

    def propagate(self, seen: dict[str, int]) -> list[dg.RunRequest]:
        """Runs for what was published since each job's entry in `seen`, which is advanced."""
        newest = self.restatements.newest_publication()
        routes = [path for path in paths(self.catalogue) if path.streams(self.catalogue)]
        if all(seen.get(path.name) == newest for path in routes):
            return []
        if any(seen.get(path.name, 0) > newest for path in routes):
            seen.clear()  # the cursor belongs to another database
        accounted = self.restatements.accounted_for()
        after = {path: max(seen.get(path.name, 0), accounted.get(path.name, 0)) for path in routes}
        writes = self.restatements.writes(min(after.values()))
        running = self._running(writes)
        busy = {request.job for request in self.restatements.requests(status=REQUESTED)}
        look = Staleness.of(self.platform.pipeline, self.restatements)
        requests = []
        for path in routes:
            streams = [(view, stream) for view, stream in path.streams(self.catalogue) if self.catalogue.is_fed(stream)]
            relations = sorted({name for view, stream in streams for name in reads(view, stream)})
            mine = writes.filter((pl.col("publication_id") > after[path]) & pl.col("relation").is_in(relations))
            up_to = newest
            # Who published may be about to compute what depends on it.
            if (held := mine.filter(pl.col("run_id").is_in(running))["publication_id"].min()) is not None:
                up_to = int(held) - 1  # type: ignore[arg-type]
                mine = mine.filter(pl.col("publication_id") <= up_to)
            if not mine.is_empty() and path.name in busy:
                continue  # what comes during a request goes into the next one
            if not mine.is_empty():
                requests += self._request(path, look, streams, mine, up_to)
            seen[path.name] = max(up_to, after[path])
        return requests

    def _running(self, writes: pl.DataFrame) -> list[str]:
        run_ids = writes["run_id"].unique().to_list()
        if not run_ids:
            return []
        return [run.run_id for run in self.context.instance.get_runs(dg.RunsFilter(run_ids=run_ids, statuses=NOT_FINISHED_STATUSES))]

    def _request(
        self, path: MarketPath, look: Staleness, streams: Sequence[tuple[FeatureView, Stream]], writes: pl.DataFrame, up_to: int
    ) -> list[dg.RunRequest]:
        stale = [found for view, stream in streams if (found := look.stream(view, stream, writes)) is not None]
        now = self.platform.clock.now()
        wanted = [
            Restatement(
                restatement_id=0,
                job=path.name,
                status=WAITING if len(block.partitions) > LONGEST_SESSIONS else REQUESTED,
                relations=[stream_relation(view, stream).name for view, stream in block.streams],
                first_partition=block.partitions[0],
                last_partition=block.partitions[-1],
                partitions=len(block.partitions),
                causes=dict(as_causes(writes)),
                last_publication_id=up_to,
                attempts=1,
                changed_at=writes["published_at"].min(),  # type: ignore[arg-type]
                requested_at=now,
                finished_at=None,
                run_id=None,
            )
            for block in blocks(stale)
        ]
        stored = self.restatements.add(wanted, path.name, up_to) if wanted else []
        for request in stored:
            if request.status == WAITING:
                self.context.log.warning(
                    f"restatement {request.restatement_id} of {request.partitions} sessions waits: see `featurestore restatements`, and"
                    f" start it with `featurestore restatements apply {request.restatement_id}`"
                )
        return [self._run(request) for request in stored if request.status == REQUESTED]

    def _run(self, request: Restatement) -> dg.RunRequest:
        pairs = [(v, s) for v in self.catalogue.views for s in v.streams if stream_relation(v, s).name in request.relations]
        streams = [asset_keys.stream(view, stream) for view, stream in pairs]
        assets = [*streams, *dict.fromkeys(asset_keys.online(view) for view, _ in pairs if view.online)]
        checks = [dg.AssetCheckKey(key, asset_keys.AUDIT) for key in streams]  # freshness has a sensor of its own
        marts = {view.mart for view, _ in pairs if view.mart}
        # Building a mart costs more than all the views: only for rows that it does not hold yet.
        if marts and dataset_relation(MART_SOURCE).name in request.causes and self.context.repository_def is not None:
            graph = self.context.repository_def.asset_graph
            models = asset_keys.mart_models(*marts).resolve(graph)
            assets += sorted(models)
            checks += sorted(graph.get_check_keys_for_assets(models))  # dbt runs its tests with its models, or neither
        return dg.RunRequest(
            run_key=f"restatement:{request.restatement_id}:{request.attempts}",
            job_name=request.job,
            asset_selection=assets,
            asset_check_keys=checks,
            partition_key=request.first_partition if request.partitions == 1 else None,
            tags={
                PROPAGATION_TAG: "true",
                RESTATEMENT_TAG: str(request.restatement_id),
                PRIORITY_TAG: PROPAGATION_PRIORITY,
                **range_tags(request.first_partition, request.last_partition),
            },
        )

    # Requests that were made ----------------------------------------------------------------------------------------------------------

    def follow_up(self) -> list[dg.RunRequest]:
        """Close what has ended; ask again for what died, or what Dagster never heard of."""
        again = []
        for request in self.restatements.requests(status=REQUESTED):
            filters = dg.RunsFilter(tags={RESTATEMENT_TAG: str(request.restatement_id)})
            record = next(iter(self.context.instance.get_run_records(filters, limit=1)), None)
            if record is None:
                again.append(self._run(request))
            elif record.dagster_run.status in FINISHED_STATUSES:
                again += self._finish(request, record)
        return again

    def _finish(self, request: Restatement, record: RunRecord) -> list[dg.RunRequest]:
        run = record.dagster_run
        # Dagster replaces a worker that died by a run of the same tags, if it launched the run itself.
        if run.is_complete_and_waiting_to_retry and run.remote_job_origin is not None:
            return []
        blocked = bool(self.platform.pipeline.ledger.blocking_runs([run.run_id]))
        if run.is_failure and not blocked and request.attempts < ATTEMPTS:  # one that a person cancelled stays so
            self.restatements.attempt(request.restatement_id, request.attempts + 1)
            return [self._run(replace(request, attempts=request.attempts + 1))]
        clock = self.platform.clock
        ended = datetime.fromtimestamp(record.end_time, UTC) if record.end_time and not clock.replayed else clock.now()
        self.restatements.finish(request.restatement_id, DONE if run.is_success else FAILED, run.run_id, ended)
        return []

    # Rows that Redis lacks ------------------------------------------------------------------------------------------------------------

    def sync(self) -> list[dg.RunRequest]:
        """A run for each path over the views of which Redis lacks publications, once no run is left that may be about to sync them.

        A worker died between the two, or Dagster synced before it repeated a range that failed, or Redis was flushed. What fails is asked
        for again some minutes later.
        """
        about_to_sync = [*IN_PROGRESS_RUN_STATUSES, dg.DagsterRunStatus.QUEUED]  # one that was only created may never be launched
        if self.context.instance.get_run_records(dg.RunsFilter(statuses=about_to_sync), limit=1):
            return []
        views = [view for view in self.catalogue.views if view.online]
        relations = {view.label: [stream_relation(view, stream).name for stream in view.streams] for view in views}
        published = self.restatements.newest_of([name for names in relations.values() for name in names])
        newest = {label: max(published.get(name, 0) for name in names) for label, names in relations.items()}
        try:
            held = {view.label: self.platform.online.publication_id(view) or 0 for view in views}
        except StoreUnavailableError as error:
            self.context.log.warning(f"whether Redis has all publications is not known: {error}")
            return []
        behind: dict[str, list[FeatureView]] = {}
        for view in views:
            if held[view.label] < newest[view.label]:
                path = next(path for path in paths(self.catalogue) if any(mine is view for mine, _ in path.streams(self.catalogue)))
                behind.setdefault(path.name, []).append(view)
        attempt = int(self.platform.clock.now().timestamp() // SYNC_AGAIN_SECONDS)
        return [
            dg.RunRequest(
                run_key=f"sync:{name}:{','.join(f'{view.label}={newest[view.label]}' for view in lagging)}:{attempt}",
                job_name=name,
                asset_selection=[asset_keys.online(view) for view in lagging],
                asset_check_keys=[],
                tags={PROPAGATION_TAG: "true", PRIORITY_TAG: PROPAGATION_PRIORITY},
            )
            for name, lagging in behind.items()
        ]

    # Sessions that nobody ran ---------------------------------------------------------------------------------------------------------

    def catch_up(self) -> list[dg.RunRequest]:
        """One run per path over the sessions that are over and that nobody audited after their close.

        A dataset that was never audited was never asked for. What fails is asked for again each hour.
        """
        now = self.platform.clock.now()
        wanted = {
            path: [dataset_relation(dataset).name for dataset in path.delivered(self.catalogue)]
            for path in paths(self.catalogue)
            if path.streams(self.catalogue)
        }
        since = (now - timedelta(days=CATCH_UP_DAYS)).date().isoformat()
        audited = self.restatements.audited([name for names in wanted.values() for name in names], since)
        requests = []
        for path, names in wanted.items():
            market, lag = calendar(path.calendar), longest_lag(self.catalogue, path)
            missed = sorted({key for name in names for key in missed_sessions(market, audited.get(name, {}), now, lag)})
            if not missed or self._catching_up(path):
                continue
            first, last = missed[0], missed[-1]
            requests.append(
                dg.RunRequest(
                    run_key=f"catch_up:{path.name}:{first}:{last}:{now:%Y-%m-%dT%H}",
                    job_name=path.name,
                    partition_key=first if first == last else None,
                    tags={PROPAGATION_TAG: "true", CATCH_UP_TAG: path.name, PRIORITY_TAG: PROPAGATION_PRIORITY, **range_tags(first, last)},
                )
            )
        return requests

    def _catching_up(self, path: MarketPath) -> bool:
        filters = dg.RunsFilter(tags={CATCH_UP_TAG: path.name}, statuses=NOT_FINISHED_STATUSES)
        return bool(self.context.instance.get_run_records(filters, limit=1))


def missed_sessions(market: MarketCalendar, audited: Mapping[str, datetime], now: datetime, lag: timedelta) -> list[str]:
    """Sessions since the first of `audited` (partition -> last audit) that ended over `lag` ago and were not audited after their close."""
    if not audited:
        return []
    today = market.session_of(pl.Series([now], dtype=UTC_MICROSECONDS))[0]
    sessions = market.sessions(date.fromisoformat(min(audited)), today).select("session", "closes", "window_end")
    return [
        label.isoformat()
        for label, closes, window_end in sessions.iter_rows()
        if window_end + lag < now and audited.get(label.isoformat(), BEGINNING) < closes
    ]
