"""The code location as Dagster sees it: it loads, it is the committed graph, and each asset says what it is."""

import difflib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from featurestore_dagster.errors import UnknownNameError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.orchestration.assets.views import freshness_policy
from featurestore_dagster.settings import Settings
from tests.integration.orchestration.graph_text import graph_text

SNAPSHOT = Path(__file__).parent / "asset_graph.txt"
REPLAY = "2018-12-31T22:00:00Z"
VIEW_STREAMS = [(view, stream) for view in CATALOGUE.views for stream in view.streams]


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    """The definitions on the demo's clock, so that their partitions stand still; no server runs."""
    from featurestore_dagster.definitions import build_definitions

    return build_definitions(Settings(data_folder=tmp_path_factory.mktemp("data"), clock=REPLAY))


@pytest.fixture(scope="module")
def specs(definitions: dg.Definitions) -> dict[dg.AssetKey, dg.AssetSpec]:
    """Every asset of ours by key."""
    return {spec.key: spec for spec in definitions.resolve_all_asset_specs()}


def test_the_code_location_is_valid(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)


def test_the_graph_is_the_committed_one(definitions: dg.Definitions, tmp_path: Path) -> None:
    actual = tmp_path / SNAPSHOT.name
    actual.write_text(graph_text(definitions))
    expected = SNAPSHOT.read_text() if SNAPSHOT.exists() else ""
    lines = (text.splitlines(keepends=True) for text in (expected, actual.read_text()))
    difference = "".join(difflib.unified_diff(*lines, "committed", "now", n=8))
    assert not difference, f"the graph changed:\n{difference}\nIf this is meant, commit it:\n  cp '{actual}' '{SNAPSHOT}'"


def test_a_calendar_that_does_not_exist_is_refused_at_loading_with_the_names_that_do(tmp_path: Path) -> None:
    from featurestore_dagster.definitions import build_definitions

    bars = replace(US_EQUITY_CANDLES_1D, calendar="XNYSE")
    view = replace(DAILY_OHLCV_STATS, streams=(replace(DAILY_OHLCV_STATS.streams[0], calendar="XNYSE", inputs=(bars,)),))
    catalogue = replace(CATALOGUE, datasets=(bars,), sources=(), views=(view,), services=())
    with pytest.raises(UnknownNameError, match=r"XNYSE.*XNYS"):
        build_definitions(Settings(data_folder=tmp_path, clock=REPLAY), catalogue)


def test_every_asset_says_what_it_is(specs: dict[dg.AssetKey, dg.AssetSpec]) -> None:
    silent = {
        f"{key.to_user_string()}: {what}"
        for key, spec in specs.items()
        for what, said in {
            "description": spec.description,
            "owner": spec.owners,
            "kind": spec.kinds,
            "group": spec.group_name in {"raw", "indicators", "macro", "events", "training", "online"},
            "column schema": spec.metadata.get("dagster/column_schema"),
        }.items()
        if not said
    }
    assert silent == set()


def test_every_column_has_a_type_and_a_description(specs: dict[dg.AssetKey, dg.AssetSpec]) -> None:
    columns = {(key.to_user_string(), column.name): column for key in specs for column in _columns(specs, key)}
    poor = {name for name, column in columns.items() if column.type in {"", "?", "string"} or not column.description}
    assert poor == set()
    for view, stream in VIEW_STREAMS:
        named = {column.name for column in _columns(specs, asset_keys.stream(view, stream))}
        assert named >= {*view.join_keys, *view.feature_names, "event_timestamp", "created_timestamp", "flags"}


@pytest.mark.parametrize(("view", "stream"), [pytest.param(v, s, id=f"{v.name}-{s.name}") for v, s in VIEW_STREAMS])
def test_d9_d12_a_view_is_blocked_by_its_audit_and_watched_by_its_slo(
    definitions: dg.Definitions, view: FeatureView, stream: Stream
) -> None:
    key = asset_keys.stream(view, stream)
    graph = definitions.resolve_asset_graph()
    audit, data_freshness = (graph.get_check_spec(dg.AssetCheckKey(key, name)) for name in (asset_keys.AUDIT, asset_keys.DATA_FRESHNESS))
    assert audit.blocking
    assert audit.partitions_def == graph.get(key).partitions_def != None  # noqa: E711 - the chain compares all three
    # A stale market must stop nothing, and a runless partitioned evaluation could be recorded only once.
    assert (data_freshness.blocking, data_freshness.partitions_def) == (False, None)
    assert graph.get(key).freshness_policy == freshness_policy(view, stream)


def test_d4_nothing_is_left_to_declarative_automation(definitions: dg.Definitions, specs: dict[dg.AssetKey, dg.AssetSpec]) -> None:
    graph = definitions.resolve_asset_graph()
    assert [key for key, spec in specs.items() if spec.automation_condition is not None] == []
    assert [check for check in graph.asset_check_keys if graph.get_check_spec(check).automation_condition is not None] == []


def test_d6_a_partition_is_a_session_and_never_a_symbol(specs: dict[dg.AssetKey, dg.AssetSpec]) -> None:
    for key, spec in specs.items():
        if spec.partitions_def is not None:
            assert isinstance(spec.partitions_def, dg.TimeWindowPartitionsDefinition), key
            assert spec.partitions_def.get_num_partitions() < 20_000, key


def test_d17_dbt_makes_no_view(specs: dict[dg.AssetKey, dg.AssetSpec]) -> None:
    built = {key for key, spec in specs.items() if "dbt" in spec.kinds}
    assert {key.path[0] for key in built} == {"staging", "marts"}
    assert not built & {asset_keys.stream(view, stream) for view, stream in VIEW_STREAMS}


def test_the_lineage_of_every_feature_ends_in_raw_columns(specs: dict[dg.AssetKey, dg.AssetSpec]) -> None:
    keys = [(view, asset_keys.stream(view, stream)) for view, stream in VIEW_STREAMS]
    traced = set()
    for view, key in [*keys, *((view, asset_keys.online(view)) for view in CATALOGUE.views if view.online)]:
        parents = {dep.asset_key for dep in specs[key].deps}
        lineage = _lineage(specs, key)
        assert lineage.keys() == set(view.feature_names)
        for feature, deps in lineage.items():
            # A stream without the input of a feature (quotes of equities) has NULL there; some other stream of the view has it.
            if deps:
                traced.add((view.name, feature))
            for dep in deps:
                assert dep.asset_key in parents, f"{key} {feature} names {dep.asset_key}, which is no dependency"
                assert dep.column_name in {column.name for column in _columns(specs, dep.asset_key)}
                assert any(source.path[0] == "raw" for source in _upstream(specs, dep.asset_key))
    declared = {(view.name, feature) for view in CATALOGUE.views for feature in view.feature_names}
    assert declared - traced == set(), "features that come from nowhere"


def test_an_adjusted_feature_comes_from_the_corporate_actions_too(specs: dict[dg.AssetKey, dg.AssetSpec]) -> None:
    candles, actions = dg.AssetKey(["raw", "us_equity_candles_1d"]), dg.AssetKey(["raw", "us_equity_corporate_actions"])
    assert set(_lineage(specs, _equities("momentum_features"))["rsi_14"]) == {
        dg.TableColumnDep(candles, "close"),
        dg.TableColumnDep(actions, "ratio"),
        dg.TableColumnDep(actions, "cash_amount"),
    }
    assert set(_lineage(specs, _equities("daily_ohlcv_stats"))["close"]) == {dg.TableColumnDep(candles, "close")}


def _equities(name: str) -> dg.AssetKey:
    """Asset of a view's daily US equities."""
    view = CATALOGUE.view(name)
    return asset_keys.stream(view, next(stream for stream in view.streams if stream.name == "us_equity_1d"))


LOADS = {
    "the code location": ("import featurestore_dagster.definitions", {"dagster_dbt", "dbt", "pandera", "exchange_calendars"}),
    "the client": ("import featurestore_dagster.serving.client", {"dagster", "pandera", "exchange_calendars"}),
}


@pytest.mark.parametrize(("statement", "others"), LOADS.values(), ids=LOADS)
@pytest.mark.usefixtures("definitions")  # the dbt project is parsed, so that the child does not
def test_loading_pays_for_no_feast_and_no_pandas(tmp_path: Path, statement: str, others: set[str]) -> None:
    code = f"{statement}, sys; sys.exit(', '.join(sorted({ {'feast', 'pandas'} | others } & sys.modules.keys())) or 0)"
    environment = {"FEATURESTORE_DATA_FOLDER": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def _columns(specs: dict[dg.AssetKey, dg.AssetSpec], key: dg.AssetKey) -> list[dg.TableColumn]:
    schema = specs[key].metadata["dagster/column_schema"]
    assert isinstance(schema, dg.TableSchema)
    return list(schema.columns)


def _lineage(specs: dict[dg.AssetKey, dg.AssetSpec], key: dg.AssetKey) -> dict[str, list[dg.TableColumnDep]]:
    lineage = specs[key].metadata["dagster/column_lineage"]
    assert isinstance(lineage, dg.TableColumnLineage)
    return {name: list(deps) for name, deps in lineage.deps_by_column.items()}


def _upstream(specs: dict[dg.AssetKey, dg.AssetSpec], key: dg.AssetKey) -> set[dg.AssetKey]:
    """The asset and everything upstream of it."""
    return {key}.union(*(_upstream(specs, dep.asset_key) for dep in specs[key].deps))
