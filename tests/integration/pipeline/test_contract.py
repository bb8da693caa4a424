"""Rows that were really published keep the published contract: JSON schema, types, and what a view promises of its keys."""

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import polars as pl
import pytest

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS, MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.features.sources import SAMPLES
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.flags import FLAG_MEANINGS, QUARANTINED, QualityFlag
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.projections.json_schema import json_schema
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.sources import samples
from tests.integration.pipeline.conftest import EVER, Deployment, with_listings
from tests.unit.pipeline.frames import keys_between

NOW = FrozenClock(datetime(2018, 12, 31, 22, tzinfo=UTC))
VIEWS = (DAILY_OHLCV_STATS, MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW)
HISTORY = keys_between("2011-06-01", "2012-08-31")
COMPUTED = HISTORY[-25:]


@pytest.fixture
def published(deployment: Deployment) -> Deployment:
    """Real rows of three views; FB was listed three months before."""
    deployment.catalogue = with_listings({listing.symbol: listing for listing in SAMPLES.listings[US_EQUITY_CANDLES_1D.name]})
    for dataset in (US_EQUITY_CORPORATE_ACTIONS, US_EQUITY_CANDLES_1D):
        deployment.deliver(samples.fetch(dataset, *EVER, clock=NOW), dataset)
        deployment.ingest(*HISTORY, dataset=dataset)
    for view in VIEWS:
        assert not any(outcome.blocked for outcome in deployment.materialise(view, *COMPUTED))
    return deployment


def _as_json(view: FeatureView, row: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items() if name != "stream"}
    return json.loads(json.dumps({"view": view.name, **plain}, allow_nan=False))  # type: ignore[no-any-return]


def test_published_rows_keep_the_json_schema(published: Deployment) -> None:
    checker = jsonschema.FormatChecker(())
    checker.checks("date-time", (TypeError, ValueError))(lambda text: datetime.fromisoformat(text).tzinfo is not None)
    validator = jsonschema.Draft202012Validator(json_schema(CATALOGUE), format_checker=checker)
    for view in VIEWS:
        rows = [_as_json(view, row) for row in published.features(view).iter_rows(named=True)]
        assert len(rows) == 7 * len(COMPUTED)
        for row in rows:
            validator.validate(row)
        for broken in (
            {"flags": None},
            {"event_timestamp": "2018-12-03T21:00:00"},
            {"extra": 1},
            {view.feature_names[0]: "text"},
            {view.join_keys[0]: ""},
        ):
            assert not validator.is_valid(rows[0] | broken), broken


def test_published_frames_have_the_declared_schema(published: Deployment) -> None:
    for view in VIEWS:
        rows = published.features(view)
        assert dict(rows.schema) == feature_schema(view)
        assert not rows.select(*view.join_keys, "event_timestamp").is_duplicated().any()
        assert (rows["created_timestamp"] >= rows["event_timestamp"]).all()
        assert set(rows["feature_set_version"]) == {view.version}
        values = rows.select(view.feature_names)
        assert values.select(pl.all().is_nan().any()).row(0).count(True) == 0


def test_a_young_symbol_is_served_what_it_has_and_says_so(published: Deployment) -> None:
    """FB has 60 to 75 bars: rsi is there, the momentum of a year is not, and the flags say why."""
    rows = published.features(MOMENTUM_FEATURES)
    young, old = rows.filter(symbol="FB"), rows.filter(symbol="IBM")
    assert young["rsi_14"].null_count() == 0
    assert young["momentum_12m"].null_count() == young.height
    assert old.select(MOMENTUM_FEATURES.feature_names).null_count().row(0) == (0,) * len(MOMENTUM_FEATURES.feature_names)
    for flag in (QualityFlag.INSUFFICIENT_OHLCV, QualityFlag.WARMUP_CONVERGING):
        assert (young["flags"] & flag.value != 0).all()
    assert (old["flags"] & QualityFlag.INSUFFICIENT_OHLCV.value == 0).all()


def test_a_dividend_flags_the_rows_of_its_window(published: Deployment) -> None:
    """AAPL went ex on 2012-08-09; technical indicators look back 33 bars, so every later row of the month has it in its window."""
    rows = published.features(TECHNICAL_INDICATORS_VIEW).filter(symbol="AAPL").sort("event_timestamp")
    flagged = (rows["flags"] & QualityFlag.CORP_ACTION.value != 0).to_list()
    ex_date = COMPUTED.index("2012-08-09")
    assert flagged == [number >= ex_date for number in range(len(COMPUTED))]


def test_no_quarantining_flag_is_ever_published(published: Deployment) -> None:
    for view in VIEWS:
        flags = published.features(view)["flags"]
        assert (flags & QUARANTINED.value == 0).all()
        assert set(QualityFlag.counts(flags)) <= {flag.name for flag in FLAG_MEANINGS}
