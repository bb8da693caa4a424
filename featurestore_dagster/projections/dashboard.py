"""Declarations -> `monitoring/grafana/boards/feature-store-health.json`: the board "Feature Store Health", for Grafana 10 and later.

A panel is what one asks at a glance; names come from `monitoring.metrics`. Laying out and the form of the JSON belong here, rules do not.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from featurestore_dagster.monitoring import metrics
from featurestore_dagster.monitoring.metrics import Metric

TITLE, IDENTIFIER = "Feature Store Health", "feature-store-health"
REFRESH = "10s"
SCHEMA_VERSION = 39
WIDTH, HEIGHT = 24, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
STATE_COLOURS = {"FRESH": "green", "CLOSED": "blue", "LATE": "orange", "STALE": "red", "NEVER": "purple"}
GOOD, WARN, BAD = "green", "orange", "red"


@dataclass(frozen=True)
class Query:
    """One expression and the name of its series."""

    expression: str
    legend: str = "__auto"


@dataclass(frozen=True)
class Panel:
    """One panel; `steps` are (value from which on, colour) above the colour `base`; `unit` is Grafana's name of it."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    steps: tuple[tuple[float, str], ...] = ()
    base: str = GOOD
    is_stacked: bool = False
    mappings: dict[str, tuple[str, str]] = field(default_factory=dict)


def _rate(metric: Metric, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric.name}{where}[$__rate_interval]))"


def _quantile(share: float, metric: Metric, by: str = "") -> str:
    groups = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, sum by ({groups}) (rate({metric.name}_bucket[$__rate_interval])))"


def _age(metric: Metric, where: str = "") -> str:
    return f"time() - {metric.name}{where}"


_SHOWN = '{view=~"$view"}'
_STREAM = "{{view}} {{stream}}"
_STATE_NUMBER = " or ".join(
    f'{number} * ({metrics.FRESHNESS_STATE.name}{{view=~"$view",state="{state}"}} == 1)'
    for number, state in enumerate(STATE_COLOURS, start=1)
)

HEALTH = (
    Panel(
        "Freshness lag",
        "Time since the next value became available. A closed market owes nothing, and its lag stays 0.",
        (Query(metrics.FRESHNESS_LAG.name + _SHOWN, _STREAM),),
        "s",
    ),
    Panel(
        "Rows published", "Row versions written a second.", (Query(_rate(metrics.ROWS_PUBLISHED, "relation"), "{{relation}}"),), "rowsps"
    ),
    Panel(
        "Rows quarantined",
        "Refused rows: open ones, and new ones a second.",
        (
            Query(f"sum({metrics.QUARANTINED_OPEN.name})", "open"),
            Query(f"sum(rate({metrics.ROWS_QUARANTINED.name}[$__rate_interval]))", "new a second"),
        ),
    ),
    Panel(
        "Partitions blocked",
        "Partitions whose last audit refused them.",
        (Query(f"{metrics.BLOCKED.name} > 0 or on() sum({metrics.BLOCKED.name})", "{{relation}}"),),
        kind="stat",
        steps=((1, BAD),),
    ),
    Panel(
        "Requests",
        "HTTP requests a second by route, and how many are being answered.",
        (Query(_rate(metrics.REQUESTS, "route"), "{{route}}"), Query(f"sum({metrics.REQUESTS_IN_PROGRESS.name})", "in progress")),
        "reqps",
    ),
    Panel(
        "Request latency",
        "From a request's head to its whole answer.",
        tuple(Query(_quantile(share, metrics.REQUEST_DURATION), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)),
        "s",
    ),
    Panel(
        "Errors",
        "Failed requests a second by status; values from the future that were withheld.",
        (
            Query(_rate(metrics.REQUESTS, "status", '{status=~"[45].."}'), "{{status}}"),
            Query(f"sum(increase({metrics.VIOLATIONS.name}[$__rate_interval]))", "from the future"),
        ),
    ),
    Panel(
        "Answers by tier",
        "Views answered a second by the store that answered, and values by what became of them.",
        (Query(_rate(metrics.ANSWERED_VIEWS, "tier"), "{{tier}}"), Query(_rate(metrics.VALUES, "status"), "values {{status}}")),
        is_stacked=True,
    ),
    Panel(
        "Redis memory",
        "Allocated, and the limit when there is one.",
        (Query(metrics.REDIS_MEMORY_USED.name, "used"), Query(f"{metrics.REDIS_MEMORY_MAXIMUM.name} > 0", "limit")),
        "bytes",
    ),
)
"""The nine panels that the board began with."""

FRESHNESS = (
    Panel(
        "State",
        "FRESH and CLOSED owe nothing; LATE is behind the SLO, STALE behind it for another SLO of open market.",
        (Query(f"max by (view, stream) ({_STATE_NUMBER})", _STREAM),),
        kind="state-timeline",
        width=16,
        mappings={str(number): (state, colour) for number, (state, colour) in enumerate(STATE_COLOURS.items(), start=1)},
    ),
    Panel(
        "Age of the newest value",
        "Clock time since the event time of the newest row.",
        (Query(_age(metrics.WATERMARK, _SHOWN), _STREAM),),
        "s",
    ),
    Panel(
        "Due in",
        "Time until the next value must be served; negative: it is overdue.",
        (Query(f"{metrics.DUE.name}{_SHOWN} - time()", _STREAM),),
        "s",
        kind="bargauge",
        width=24,
        steps=((0, GOOD),),
        base=BAD,
    ),
)

SLO = (
    Panel(
        "Streams behind their SLO",
        "Streams that owe a value now.",
        (Query(f'sum({metrics.FRESHNESS_STATE.name}{{view=~"$view",state=~"LATE|STALE|NEVER"}})', "overdue"),),
        kind="stat",
        steps=((1, BAD),),
    ),
    Panel(
        "Attainment against the objective",
        "Share of this month in which the stream owed nothing, less what it promises; negative: the objective is missed.",
        (Query(f"{metrics.SLO_ATTAINMENT.name}{_SHOWN} - {metrics.SLO_OBJECTIVE.name}{_SHOWN}", _STREAM),),
        "percentunit",
        kind="bargauge",
        steps=((0, GOOD),),
        base=BAD,
    ),
    Panel(
        "Error budget left",
        "Share of this month's budget of overdue time.",
        (Query(metrics.SLO_BUDGET_LEFT.name + _SHOWN, _STREAM),),
        "percentunit",
        kind="bargauge",
        steps=((0, WARN), (0.25, GOOD)),
        base=BAD,
    ),
    Panel(
        "Share of the SLO used",
        "Lag divided by what the view promises; 1 is late.",
        (Query(f"{metrics.FRESHNESS_LAG.name}{_SHOWN} / {metrics.SLO.name}{_SHOWN}", _STREAM),),
        "percentunit",
        width=16,
        steps=((0.5, WARN), (1, BAD)),
    ),
    Panel(
        "Alerts",
        "Streaks that have not ended, and messages that reached nobody.",
        (Query(metrics.ALERTS.name, "{{kind}}"), Query(metrics.DEAD_LETTERS.name, "dead letters")),
        kind="stat",
        steps=((1, BAD),),
    ),
)

WRITES = (
    Panel(
        "Publication (p95)",
        "Time of one publication.",
        (Query(_quantile(0.95, metrics.PUBLISH_DURATION, "relation"), "{{relation}}"),),
        "s",
    ),
    Panel("Online sync (p95)", "Time of one sync of a view.", (Query(_quantile(0.95, metrics.SYNC_DURATION, "view"), "{{view}}"),), "s"),
    Panel(
        "Correction to online (p95)",
        "From the publication of a changed input until all that depends on it is published and in Redis.",
        (Query(_quantile(0.95, metrics.RESTATEMENT_LATENCY, "path"), "{{path}}"),),
        "s",
    ),
    Panel(
        "Waiting for Redis", "Publications that the online sync has not applied.", (Query(metrics.SYNC_PENDING.name + _SHOWN, "{{view}}"),)
    ),
    Panel("Keys in Redis", "Entities and bookkeeping of the online store.", (Query(metrics.REDIS_KEYS.name, "keys"),)),
    Panel(
        "Since the last sync",
        "Age of each view's newest sync.",
        (Query(_age(metrics.SYNC_HEARTBEAT, _SHOWN), "{{view}}"),),
        "s",
    ),
)

HEARTBEATS = (
    Panel(
        "Daemons",
        "Age of the heartbeats of Dagster's daemons.",
        (Query(_age(metrics.DAEMON_HEARTBEAT), "{{daemon}}"),),
        "s",
        kind="bargauge",
        steps=((90, WARN), (120, BAD)),
    ),
    Panel(
        "Sensors",
        "Ticks that a sensor has missed.",
        (Query(f"({_age(metrics.SENSOR_HEARTBEAT)}) / {metrics.SENSOR_INTERVAL.name}", "{{sensor}}"),),
        kind="bargauge",
        steps=((3, WARN), (5, BAD)),
    ),
    Panel(
        "Collectors",
        "1 while the exporter's collector answers in time.",
        (Query(metrics.COLLECTOR_UP.name, "{{collector}}"),),
        kind="bargauge",
        steps=((1, GOOD),),
        base=BAD,
    ),
    Panel(
        "Time of the collectors",
        "How long their last answers took.",
        (Query(metrics.COLLECTOR_DURATION.name, "{{collector}}"),),
        "s",
        width=24,
    ),
)

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Health", HEALTH),
    ("Freshness", FRESHNESS),
    ("SLO", SLO),
    ("Writes", WRITES),
    ("Heartbeats", HEARTBEATS),
)


def dashboard() -> str:
    """The board as Grafana provisions or imports it."""
    board = {
        "uid": IDENTIFIER,
        "title": TITLE,
        "description": "Generated by `featurestore generate`; changes made in Grafana are lost.",
        "tags": ["featurestore"],
        "timezone": "utc",
        "editable": False,
        "graphTooltip": 1,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": REFRESH,
        "schemaVersion": SCHEMA_VERSION,
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "panels": _laid_out(),
    }
    return json.dumps(board, indent=2) + "\n"


def _variables() -> list[dict[str, Any]]:
    return [
        {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus"},
        {
            "type": "query",
            "name": "view",
            "label": "View",
            "datasource": SOURCE,
            "query": f"label_values({metrics.SLO.name}, view)",
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        },
    ]


def _laid_out() -> list[dict[str, Any]]:
    """Rows of panels from left to right, top to bottom."""
    found: list[dict[str, Any]] = []
    top = 0
    for title, panels in ROWS:
        found.append(
            {"id": len(found) + 1, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _place(0, top, WIDTH, 1)}
        )
        top, left = top + 1, 0
        for panel in panels:
            if left + panel.width > WIDTH:
                top, left = top + HEIGHT, 0
            found.append({"id": len(found) + 1, **_panel(panel), "gridPos": _place(left, top, panel.width, HEIGHT)})
            left += panel.width
        top += HEIGHT
    return found


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel) -> dict[str, Any]:
    is_instant = panel.kind in {"stat", "bargauge"}
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": query.expression,
            "legendFormat": query.legend,
            **({"instant": True, "range": False} if is_instant else {"instant": False, "range": True}),
        }
        for number, query in enumerate(panel.queries)
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "color": {"mode": "thresholds" if panel.steps else "palette-classic"}}
    if panel.steps:
        defaults["thresholds"] = _thresholds(panel)
    if panel.mappings:
        options = {number: {"text": text, "color": colour} for number, (text, colour) in panel.mappings.items()}
        defaults["mappings"] = [{"type": "value", "options": options}]
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.is_stacked else "none", "group": "A"}
        defaults["custom"] = {"lineWidth": 2, "fillOpacity": 30 if panel.is_stacked else 0, "showPoints": "never", "stacking": stacking}
        if panel.steps:
            defaults["color"] = {"mode": "palette-classic"}
            defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel.kind),
    }


def _thresholds(panel: Panel) -> dict[str, Any]:
    steps: Sequence[dict[str, Any]] = [{"value": value, "color": colour} for value, colour in panel.steps]
    return {"mode": "absolute", "steps": [{"value": None, "color": panel.base}, *steps]}


def _options(kind: str) -> dict[str, Any]:
    newest = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match kind:
        case "stat":
            return {"reduceOptions": newest, "colorMode": "background", "graphMode": "none", "textMode": "auto"}
        case "bargauge":
            return {"reduceOptions": newest, "orientation": "horizontal", "displayMode": "basic"}
        case "state-timeline":
            return {"mergeValues": True, "showValue": "never", "rowHeight": 0.9}
        case _:
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
