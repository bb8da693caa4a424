"""The generated board: in Grafana's own model nothing of it is unknown, and each panel asks for what is exported."""

import json
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.monitoring import metrics
from featurestore_dagster.projections.alert_rules import rules
from featurestore_dagster.projections.dashboard import HEALTH, HEIGHT, REFRESH, ROWS, TITLE, WIDTH, Panel, dashboard
from tests.unit.monitoring.expressions import series_of

BOARD = json.loads(dashboard())
PANELS = [panel for _, panels in ROWS for panel in panels]


def lost(given: Any, understood: Any, path: str = "") -> list[str]:
    """What Grafana's model dropped or changed; defaults that it adds are no loss."""
    if isinstance(given, dict) and isinstance(understood, dict):
        return [line for key in given for line in lost(given[key], understood.get(key, "nothing"), f"{path}/{key}")]
    if isinstance(given, list) and isinstance(understood, list) and len(given) == len(understood):
        return [line for place, pair in enumerate(zip(given, understood, strict=True)) for line in lost(*pair, f"{path}/{place}")]
    return [] if given == understood else [f"{path}: {given!r} became {understood!r}"]


def test_grafana_understands_all_of_it() -> None:
    register_default_plugins()
    understood = json.loads(JSONEncoder().encode(Dashboard.from_json(BOARD)))
    assert lost(BOARD, understood) == []
    broken = {**BOARD, "panels": [{**BOARD["panels"][1], "titel": "x"}]}
    assert lost(broken, json.loads(JSONEncoder().encode(Dashboard.from_json(broken)))), "a wrong key is found"


def test_it_is_the_board_that_was_asked_for() -> None:
    assert (BOARD["title"], BOARD["refresh"], REFRESH) == (TITLE, "10s", "10s")
    assert [title for title, _ in ROWS][:3] == ["Health", "Freshness", "SLO"]
    assert len(HEALTH) == 9
    assert [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"] == [title for title, _ in ROWS]


def test_panels_do_not_overlap_and_stay_on_the_board() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert len(cells) == place["w"] * place["h"] <= WIDTH * HEIGHT
        assert max(x for x, _ in cells) < WIDTH
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_asks_for_metrics_that_are_exported(panel: Panel) -> None:
    for query in panel.queries:
        asked = series_of(query.expression)
        assert asked, query.expression
        assert asked <= metrics.BY_SERIES.keys(), f"{panel.title} asks for what nobody exports: {asked - metrics.BY_SERIES.keys()}"


def test_no_metric_is_exported_for_nobody() -> None:
    expressions = [query.expression for panel in PANELS for query in panel.queries]
    expressions += [rule.expression for group in rules(CATALOGUE).values() for rule in group]
    asked = {metrics.BY_SERIES[name].name for expression in expressions for name in series_of(expression) if name in metrics.BY_SERIES}
    assert asked == {metric.name for metric in metrics.METRICS}
