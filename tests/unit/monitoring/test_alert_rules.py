"""The generated rules, fired and not fired by promtool on made-up series; each has a runbook and asks for what is exported."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.alert import AlertKind
from featurestore_dagster.monitoring import metrics
from featurestore_dagster.projections.alert_rules import Rule, alert_rules, rules
from tests.unit.monitoring.conftest import Promtool
from tests.unit.monitoring.expressions import series_of

REPOSITORY = Path(__file__).parents[3]
RULES = [rule for group in rules(CATALOGUE).values() for rule in group]
DAILY = 'view="daily_ohlcv_stats",stream="us_equity_1d"'
PROMISED = 7200
"""Seconds: the SLO that `daily_ohlcv_stats` declares."""

UP = {'up{job="featurestore-exporter"}': "1x60", 'feature_store_collector_up{collector="dagster"}': "1x60"}


def case(name: str, at: str, series: dict[str, str], fires: bool, *, everything: bool = True) -> Any:
    identifier = f"{name}-{'fires' if fires else 'is quiet'}-{'-'.join(series)[:60] or 'nothing'}"
    return pytest.param(name, at, {**(UP if everything else {}), **series}, fires, id=identifier)


CASES = [
    case("ExporterSilent", "2m", {}, fires=False),
    case("ExporterSilent", "2m", {}, fires=True, everything=False),
    case("ExporterSilent", "2m", {'up{job="featurestore-exporter"}': "0x60"}, fires=True),
    case("ServerSilent", "2m", {'up{job="featurestore-serve",instance="a"}': "0x60"}, fires=True),
    case("ServerSilent", "2m", {'up{job="featurestore-serve",instance="a"}': "1x60"}, fires=False),
    case("CollectorDown", "3m", {'feature_store_collector_up{collector="redis"}': "0x60"}, fires=True),
    case("CollectorDown", "9m", {'feature_store_collector_up{collector="slo"}': "0 1 0 1 0 1 0 1 0 1"}, fires=True),
    case("CollectorDown", "30m", {'feature_store_collector_up{collector="slo"}': "1x9 0 1x50"}, fires=False),
    case("CollectorDown", "1m", {'feature_store_collector_up{collector="redis"}': "0x60"}, fires=False),
    case("DaemonSilent", "4m", {'feature_store_daemon_heartbeat_timestamp_seconds{daemon="SENSOR"}': "0x60"}, fires=True),
    case("DaemonSilent", "9m", {'feature_store_daemon_heartbeat_timestamp_seconds{daemon="SENSOR"}': "0+60x60"}, fires=False),
    case("DaemonSilent", "4m", {'feature_store_daemon_heartbeat_timestamp_seconds{daemon="RETIRED"}': "0x60"}, fires=False),
    case("DaemonSilent", "4m", {}, fires=True),
    case("DaemonSilent", "4m", {}, fires=False, everything=False),
    case(
        "SensorSilent",
        "20m",
        {
            'feature_store_sensor_heartbeat_timestamp_seconds{sensor="freshness"}': "0x60",
            'feature_store_sensor_interval_seconds{sensor="freshness"}': "60x60",
        },
        fires=True,
    ),
    case(
        "SensorSilent",
        "20m",
        {
            'feature_store_sensor_heartbeat_timestamp_seconds{sensor="freshness"}': "0+60x60",
            'feature_store_sensor_interval_seconds{sensor="freshness"}': "60x60",
        },
        fires=False,
    ),
    case("SensorSilent", "6m", {}, fires=True),
    case(
        "SyncSilent",
        "20m",
        {
            'feature_store_sync_pending_publications{view="v"}': "3x60",
            'feature_store_sync_heartbeat_timestamp_seconds{view="v"}': "0x60",
        },
        fires=True,
    ),
    case("SyncSilent", "6m", {'feature_store_sync_pending_publications{view="v"}': "3x60"}, fires=True),
    case(
        "SyncSilent",
        "20m",
        {
            'feature_store_sync_pending_publications{view="v"}': "3x60",
            'feature_store_sync_heartbeat_timestamp_seconds{view="v"}': "0+60x60",
        },
        fires=False,
    ),
    case("SyncSilent", "40m", {'feature_store_sync_pending_publications{view="v"}': "0x60"}, fires=False),
    case("ViewOverdue", "5m", {f"feature_store_freshness_lag_seconds{{{DAILY}}}": f"{PROMISED + 1}x60"}, fires=True),
    case("ViewOverdue", "5m", {f"feature_store_freshness_lag_seconds{{{DAILY}}}": f"{PROMISED}x60"}, fires=False),
    case("ViewOverdue", "59m", {'feature_store_freshness_state{view="v",stream="s",state="NEVER"}': "1x60"}, fires=False),
    case("ViewOverdue", "60m", {'feature_store_freshness_state{view="v",stream="s",state="NEVER"}': "1x60"}, fires=True),
    case("PartitionBlocked", "2m", {'feature_store_blocked_partitions{relation="r"}': "1x60"}, fires=True),
    case("PartitionBlocked", "2m", {'feature_store_blocked_partitions{relation="r"}': "0x60"}, fires=False),
    case(
        "RowsQuarantined",
        "30m",
        {'feature_store_rows_quarantined_total{relation="r"}': "0+1x60", 'feature_store_rows_published_total{relation="r"}': "0+9x60"},
        fires=True,
    ),
    case(
        "RowsQuarantined",
        "30m",
        {'feature_store_rows_quarantined_total{relation="r"}': "0+1x60", 'feature_store_rows_published_total{relation="r"}': "0+99x60"},
        fires=False,
    ),
    case(
        "RestatementSlow",
        "30m",
        {
            'feature_store_restatement_latency_seconds_bucket{path="p",le="60.0"}': "0x60",
            'feature_store_restatement_latency_seconds_bucket{path="p",le="300.0"}': "0+1x60",
            'feature_store_restatement_latency_seconds_bucket{path="p",le="+Inf"}': "0+1x60",
        },
        fires=True,
    ),
    case("BudgetSpent", "2m", {'feature_store_slo_error_budget_left_ratio{view="v",stream="s"}': "-0.1x60"}, fires=True),
    case("BudgetSpent", "2m", {'feature_store_slo_error_budget_left_ratio{view="v",stream="s"}': "0x60"}, fires=False),
    case("MessageUndelivered", "2m", {"feature_store_alert_dead_letters": "1x60"}, fires=True),
    case("MessageUndelivered", "2m", {"feature_store_alert_dead_letters": "0x60"}, fires=False),
    case(
        "ReadsDegraded",
        "15m",
        {
            'feature_store_answered_views_total{tier="redis"}': "0+90x60",
            'feature_store_answered_views_total{tier="postgres"}': "0+10x60",
        },
        fires=True,
    ),
    case("ReadsDegraded", "15m", {'feature_store_answered_views_total{tier="redis"}': "0+90x60"}, fires=False),
    case(
        "ReadsFailing",
        "15m",
        {
            'feature_store_requests_total{route="/a",status="200"}': "0+97x60",
            'feature_store_requests_total{route="/a",status="503"}': "0+3x60",
        },
        fires=True,
    ),
    case(
        "ReadsFailing",
        "15m",
        {
            'feature_store_requests_total{route="/a",status="200"}': "0+97x60",
            'feature_store_requests_total{route="/a",status="422"}': "0+3x60",
        },
        fires=False,
    ),
    case(
        "ReadsSlow",
        "20m",
        {
            'feature_store_request_duration_seconds_bucket{route="/v1/online-features",le="0.1"}': "0+1x60",
            'feature_store_request_duration_seconds_bucket{route="/v1/online-features",le="0.05"}': "0x60",
            'feature_store_request_duration_seconds_bucket{route="/v1/online-features",le="+Inf"}': "0+1x60",
        },
        fires=True,
    ),
    case("FutureValue", "3m", {"feature_store_point_in_time_violations_total": "0 0 1x60"}, fires=True),
    case("FutureValue", "3m", {"feature_store_point_in_time_violations_total": "4x60"}, fires=False),
    case(
        "RedisMemory",
        "6m",
        {"feature_store_redis_memory_used_bytes": "95x60", "feature_store_redis_memory_maximum_bytes": "100x60"},
        fires=True,
    ),
    case(
        "RedisMemory",
        "6m",
        {"feature_store_redis_memory_used_bytes": "95x60", "feature_store_redis_memory_maximum_bytes": "0x60"},
        fires=False,
    ),
]


def test_rules_fire_when_they_must_and_only_then(promtool: Promtool, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(alert_rules(CATALOGUE))
    checked = promtool("check", "rules", "rules.yml", folder=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tests = []
    for parameters in CASES:
        name, at, series, fires = parameters.values
        firing = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) > bool 0 or vector(0)'
        expected = [{"labels": "{}", "value": float(fires)}]
        tests.append(
            {
                "name": parameters.id,
                "interval": "1m",
                "input_series": [{"series": found, "values": values} for found, values in series.items()],
                "promql_expr_test": [{"expr": firing, "eval_time": at, "exp_samples": expected}],
            }
        )
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}))
    done = promtool("test", "rules", "test.yml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_in_some_case_above() -> None:
    assert {rule.name for rule in RULES} == {parameters.values[0] for parameters in CASES if parameters.values[3]}


@pytest.mark.parametrize("rule", {rule.kind: rule for rule in RULES}.values(), ids=lambda rule: rule.kind)
def test_t13_an_alert_has_a_runbook_and_asks_for_what_is_exported(rule: Rule) -> None:
    assert (REPOSITORY / rule.kind.runbook).is_file(), f"{rule.name} has no runbook {rule.kind.runbook}"
    assert series_of(rule.expression) <= {*metrics.BY_SERIES, "up"}


def test_every_stream_has_its_own_threshold_from_its_slo() -> None:
    promised = {
        (view.label, stream.name): f"> {view.slo_of(stream).max_lag.total_seconds():.0f}"
        for view in CATALOGUE.views
        for stream in view.streams
    }
    found = {
        (rule.labels["view"], rule.labels["stream"]): rule.expression
        for rule in RULES
        if rule.kind is AlertKind.VIEW_OVERDUE and rule.labels
    }
    assert found.keys() == promised.keys()
    assert all(found[key].endswith(promised[key]) for key in promised)
    assert any(key[0] == "daily_ohlcv_stats" and expression.endswith(f"> {PROMISED}") for key, expression in found.items())
