"""The asset graph, jobs, schedules and sensors as text to be committed and read in a review."""

from collections.abc import Iterable, Iterator

import dagster as dg
from dagster._core.definitions.freshness import CronFreshnessPolicy, TimeWindowFreshnessPolicy


def graph_text(definitions: dg.Definitions) -> str:
    """One paragraph for each asset, job, schedule and sensor, sorted."""
    return "\n".join([*_assets(definitions), *_automation(definitions)])


def _assets(definitions: dg.Definitions) -> Iterator[str]:
    graph = definitions.resolve_asset_graph()
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        checks = [graph.get_check_spec(check) for check in sorted(node.check_keys, key=lambda check: check.name)]
        yield f"asset {key.to_user_string()}"
        yield f"  group       {node.group_name}"
        yield f"  kinds       {_line(node.kinds)}"
        yield f"  partitions  {_partitions(node.partitions_def)}"
        yield f"  backfill    {_backfill(node.backfill_policy)}"
        yield f"  freshness   {_freshness(node.freshness_policy)}"
        yield f"  pool        {_line(node.pools)}"
        yield f"  after       {_line(parent.to_user_string() for parent in node.parent_keys)}"
        for spec in checks:
            traits = [*(["blocking"] if spec.blocking else []), *(["by partition"] if spec.partitions_def else [])]
            yield f"  check       {spec.name}{f' ({_line(traits)})' if traits else ''}"
        yield ""


def _partitions(definition: dg.PartitionsDefinition[str] | None) -> str:
    if definition is None:
        return "none"
    assert isinstance(definition, dg.TimeWindowPartitionsDefinition)
    keys = definition.get_partition_keys()
    return f"{len(keys)} from {keys[0]} to {keys[-1]}, at {definition.hour_offset}:00 {definition.timezone}"


def _backfill(policy: dg.BackfillPolicy | None) -> str:
    if policy is None:
        return "none"
    return f"{policy.max_partitions_per_run} partitions a run" if policy.max_partitions_per_run else "one run"


def _freshness(policy: object) -> str:
    if isinstance(policy, CronFreshnessPolicy):
        return f"at {policy.deadline_cron} {policy.timezone}, materialised in the {policy.lower_bound_delta} before"
    if isinstance(policy, TimeWindowFreshnessPolicy):
        return f"materialised in the last {policy.fail_window.to_timedelta()}"
    return "none"


def _automation(definitions: dg.Definitions) -> Iterator[str]:
    repository = definitions.get_repository_def()
    for job in sorted(repository.get_all_jobs(), key=lambda job: job.name):
        if not job.name.startswith("__"):
            yield f"job {job.name}"
            yield f"  executor    {job.executor_def.name}"
            yield from (f"  runs        {key.to_user_string()}" for key in sorted(job.asset_layer.selected_asset_keys))
            yield ""
    for schedule in sorted(repository.schedule_defs, key=lambda schedule: schedule.name):
        crons = [schedule.cron_schedule] if isinstance(schedule.cron_schedule, str) else schedule.cron_schedule
        yield f"schedule {schedule.name}"
        yield from (f"  cron        {cron}" for cron in crons)
        yield f"  zone        {schedule.execution_timezone}"
        yield f"  job         {schedule.job_name}"
        yield ""
    for sensor in sorted(repository.sensor_defs, key=lambda sensor: sensor.name):
        yield f"sensor {sensor.name}"
        yield f"  every       {sensor.minimum_interval_seconds} s"
        yield f"  jobs        {_line(job.name for job in sensor.jobs) if sensor.has_jobs else 'none'}"
        yield ""


def _line(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
