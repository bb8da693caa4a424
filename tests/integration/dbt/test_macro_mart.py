"""What the macro models compute, and that a failed test of theirs blocks: real dbt on real Postgres inside real Dagster runs."""

import math
import random
import shutil
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import polars as pl
import pytest

from featurestore_dagster.features.macro_series import RELEASED_SERIES, series_inputs
from featurestore_dagster.features.macro_views import PORTFOLIO_MACRO_FEATURES
from featurestore_dagster.indicators.macro import change
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.orchestration.assets.dbt import DbtRunner
from featurestore_dagster.pipeline.blocks.observations import OBSERVATION_SCHEMA, observation_windows
from featurestore_dagster.projections.dbt_contract import MACRO_SERIES_MART, series_catalogue

pytestmark = pytest.mark.filterwarnings("ignore:sqlglotrs is deprecated:DeprecationWarning")

DAY, SECOND = timedelta(days=1), timedelta(seconds=1)
NEW_YEAR = datetime(2018, 1, 1, 13, 15, tzinfo=UTC)
MART = dg.AssetKey(["marts", "macro_series"])


def test_vintages_are_what_a_reader_would_have_known(macro):
    """Every vintage of the mart equals a brute-force replay, instant by instant, of which version was current."""
    generator = random.Random(20180103)
    expected = []
    for series_id, value_range in (("DGS10", (2.0, 2.1, 2.2)), ("NEWSERIES", (-1e9, 1e9))):
        for number in range(40):
            observed = date(2018, 1, 1) + number * DAY
            versions = _versions(generator, value_range)
            for version in versions:
                macro.insert(f" {series_id.lower()} " if number % 5 == 0 else series_id, observed, **version)
            expected += [(series_id, observed, *vintage[:-1], 0, 0, vintage[-1]) for vintage in _replayed(versions)]
    macro.insert("DGS10", date(2018, 1, 1), NEW_YEAR - 30 * DAY, 1.0, dataset="eu_macro")

    result = macro.build()

    assert result.success
    assert macro.mart().rows() == expected
    assert macro.mart().schema == MACRO_SERIES_MART.schema
    assert max(vintage[5] for vintage in expected) >= 4
    checks = {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}
    undeclared = checks.pop("macro_series_declared")
    assert (undeclared.passed, undeclared.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert {row.data["series_id"] for row in undeclared.metadata["failing_rows"].records} == {"NEWSERIES"}
    assert all(evaluation.passed for evaluation in checks.values())
    assert macro.views_run == ["2018-01-03"]


def test_failed_test_keeps_the_mart_and_holds_the_view_until_the_data_is_mended(macro):
    faults = {
        "macro_value_in_range": ("VIXCLS", 9000.0, {}),
        "macro_value_finite": ("DGS2", math.nan, {}),
        "macro_known_at_not_before_release": ("DGS10", 2.4, {"known_at": NEW_YEAR - DAY}),
    }
    for series_id, _, _ in faults.values():
        macro.insert(series_id, date(2017, 12, 29), NEW_YEAR - DAY, 6.0)
    assert macro.build().success
    before = macro.mart()

    for series_id, value, other in faults.values():
        macro.insert(series_id, date(2018, 1, 1), NEW_YEAR, value, **other)
    blocked = macro.build()

    failed = {check.check_name: check for check in blocked.get_asset_check_evaluations() if not check.passed}
    assert set(failed) == set(faults)
    for name, (series_id, value, _) in faults.items():
        assert failed[name].blocking
        rows = [record.data for record in failed[name].metadata["failing_rows"].records]
        assert (series_id, str(value)) in {(row["series_id"], row["value"]) for row in rows}
    assert not blocked.success
    assert MART not in _materialised(blocked)
    assert macro.mart().equals(before)
    assert macro.views_run == ["2018-01-03"]
    failure = blocked.failure_data_for_node("dbt_build").user_failure_data
    assert "macro_value_in_range" in failure.description

    for series_id, _, _ in faults.values():
        macro.insert(series_id, date(2018, 1, 1), NEW_YEAR, 6.5, known_at=NEW_YEAR + DAY)
    mended = macro.build()

    assert mended.success
    assert MART in _materialised(mended)
    news = macro.mart().join(before, on=["series_id", "observation_date"], how="anti")
    assert news.select("series_id", "value", "known_at", "is_first_print").rows() == [
        (series_id, 6.5, NEW_YEAR + DAY, True) for series_id in ("DGS10", "DGS2", "VIXCLS")
    ]
    assert macro.views_run == ["2018-01-03", "2018-01-03"]


def test_materialisation_says_rows_columns_and_where_they_come_from(macro):
    macro.insert("VIXCLS", date(2018, 1, 1), NEW_YEAR, 11.0)
    macro.insert("VIXCLS", date(2018, 1, 1), NEW_YEAR, 12.0, known_at=NEW_YEAR + DAY)

    result = macro.build()

    metadata = _materialised(result)[MART].metadata
    assert metadata["dagster/row_count"].value == 2
    lineage = metadata["dagster/column_lineage"].value.deps_by_column
    assert set(lineage) == set(MACRO_SERIES_MART.schema)
    vintages = dg.AssetKey(["staging", "int_macro_vintages"])
    assert lineage["value"] == [dg.TableColumnDep(asset_key=vintages, column_name="value")]
    definition = result.job_def.asset_layer.get(MART)
    assert [column.name for column in definition.metadata["dagster/column_schema"].columns] == list(MACRO_SERIES_MART.schema)
    assert {event.partition for event in result.all_events if event.is_step_materialization and event.asset_key == MART} == {None}


def test_a_row_before_a_revision_sees_the_first_print(macro):
    for number, value in enumerate([11.0, 12.0]):
        macro.insert("VIXCLS", date(2018, 1, 1) + number * DAY, NEW_YEAR + number * DAY, value)
    macro.insert("VIXCLS", date(2018, 1, 2), NEW_YEAR + DAY, 13.0, known_at=NEW_YEAR + 3 * DAY)
    macro.build()

    first, second = _as_of(macro, NEW_YEAR + 3 * DAY - SECOND), _as_of(macro, NEW_YEAR + 3 * DAY)

    assert first["value:vix_change"] == 12.0 / 11.0 - 1
    assert second["value:vix_change"] == 13.0 / 11.0 - 1
    assert (first["flags:observations"], second["flags:observations"]) == (0, QualityFlag.RESTATED.value)


def test_an_embargo_delays_what_is_known_and_nothing_else(macro, project_dir, tmp_path):
    delayed = [replace(series, embargo=2 * DAY) if series.series_id == "VIXCLS" else series for series in RELEASED_SERIES.values()]
    project = shutil.copytree(project_dir, tmp_path / "dbt_project", ignore=shutil.ignore_patterns("target"))
    (project / "macros" / "macro_series_catalogue.sql").write_text(series_catalogue(delayed))
    macro.runner = DbtRunner(macro.settings, project)
    macro.insert("VIXCLS", date(2018, 1, 1), NEW_YEAR, 11.0)
    macro.insert("DGS10", date(2018, 1, 1), NEW_YEAR, 2.4, flags=QualityFlag.SIMULATED.value)
    macro.build()

    assert macro.mart().select("series_id", "event_timestamp", "known_at", "embargo_seconds", "flags").rows() == [
        ("DGS10", NEW_YEAR, NEW_YEAR, 0, QualityFlag.SIMULATED.value),
        ("VIXCLS", NEW_YEAR, NEW_YEAR + 2 * DAY, 172_800, 0),
    ]
    assert _as_of(macro, NEW_YEAR + 2 * DAY - SECOND)["vix"] is None
    assert _as_of(macro, NEW_YEAR + 2 * DAY)["vix"] == 11.0


def test_a_published_spread_that_is_not_the_difference_is_shown(macro):
    for number, (longer, shorter, published) in enumerate([(2.85, 2.6, 0.24), (2.85, 2.6, 0.25), (2.85, 2.6, 0.27)]):
        for series_id, value in (("DGS10", longer), ("DGS2", shorter), ("T10Y2Y", published)):
            macro.insert(series_id, date(2018, 1, 1) + number * DAY, NEW_YEAR + number * DAY, value)

    result = macro.build()

    assert result.success
    (check,) = (check for check in result.get_asset_check_evaluations() if not check.passed)
    assert (check.check_name, check.severity) == ("macro_term_spread_agrees", dg.AssetCheckSeverity.WARN)
    assert [row.data["observation_date"] for row in check.metadata["failing_rows"].records] == ["2018-01-03"]


def test_a_series_that_changes_its_frequency_holds_the_mart(macro):
    for month in range(1, 4):
        macro.insert("VIXCLS", date(2017, month, 1), NEW_YEAR, 11.0 + month)

    result = macro.build()

    assert not result.success
    (check,) = (check for check in result.get_asset_check_evaluations() if not check.passed)
    assert (check.check_name, check.blocking) == ("macro_frequency_kept", True)
    assert [row.data["series_id"] for row in check.metadata["failing_rows"].records] == ["VIXCLS"]
    assert macro.views_run == []


def test_unchanged_rows_are_confirmed_and_new_ones_are_built(macro):
    macro.insert("VIXCLS", date(2018, 1, 1), NEW_YEAR, 11.0)
    first, again = macro.build(), macro.build()
    macro.insert("VIXCLS", date(2018, 1, 2), NEW_YEAR + DAY, 12.0, batch_id=2)
    third = macro.build()

    assert all(result.success for result in (first, again, third))
    assert ["unchanged" in _materialised(result)[MART].metadata for result in (first, again, third)] == [False, True, False]
    assert {check.asset_check_key for check in again.get_asset_check_evaluations()} == {
        check.asset_check_key for check in first.get_asset_check_evaluations()
    }
    assert macro.views_run == ["2018-01-03"] * 3
    assert macro.mart()["value"].to_list() == [11.0, 12.0]


def _as_of(macro, at):
    """The row of one instant, from the mart."""
    view = replace(PORTFOLIO_MACRO_FEATURES, features=(change.feature("vix_change", column="vix"),))
    rows = pl.DataFrame({"event_timestamp": [at]}, schema={"event_timestamp": UTC_MICROSECONDS})
    observations = series_inputs(view).join(macro.mart(), on="series_id", how="left").select(list(OBSERVATION_SCHEMA))
    return observation_windows(view.features, rows, observations).row(0, named=True)


def _versions(generator, value_range):
    """One to seven versions, some of them implausible, late, tied or from another source; the newest is plausible."""
    versions = {}
    for _ in range(generator.randint(1, 7)):
        released = NEW_YEAR + generator.randint(0, 2) * DAY
        known_at = released + generator.randint(0, 4) * DAY
        source = generator.choice(["files", "samples"])
        value = generator.choice([*value_range, *value_range, math.inf])
        versions[released, source, known_at] = {"released": released, "known_at": known_at, "source": source, "value": value}
    for version in versions.values():
        version["batch_id"] = generator.randint(1, 1000)
    newest = max((released, known_at) for released, _, known_at in versions)
    for version in versions.values():
        if (version["released"], version["known_at"]) == newest:
            version["value"] = value_range[0]
    return list(versions.values())


def _replayed(versions):
    """(event_timestamp, known_at, value, vintage_number, is_first_print, batch_id) of each change of the current value."""
    plausible = [version for version in versions if math.isfinite(version["value"])]
    vintages = []
    for instant in sorted({version["known_at"] for version in plausible}):
        known = [version for version in plausible if version["known_at"] <= instant]
        newest = max((version["released"], version["known_at"]) for version in known)
        current = min((v for v in known if (v["released"], v["known_at"]) == newest), key=lambda version: version["source"])
        if not vintages or vintages[-1][2] != current["value"]:
            vintages.append((current["released"], instant, current["value"], len(vintages) + 1, not vintages, current["batch_id"]))
    return vintages


def _materialised(result):
    return {event.asset_key: event.materialization for event in result.all_events if event.is_step_materialization}
