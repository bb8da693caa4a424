"""Two versions of a view beside each other: names, references, refusals."""

from dataclasses import replace

import pytest

from featurestore_dagster.errors import DeclarationError, UnknownNameError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.entities import PORTFOLIO
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES, US_EQUITY_1D
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.projections.postgres_table import tables
from featurestore_dagster.projections.relation import relations

FIRST, SECOND, THIRD, *_ = MOMENTUM_FEATURES.features
BASE = replace(MOMENTUM_FEATURES, streams=(US_EQUITY_1D,))
OLD = replace(BASE, features=(FIRST, SECOND), version=1, aliases=()).superseded()
NEW = replace(BASE, features=(SECOND, THIRD), version=2, aliases=("momentum",))


def catalogue(*views: FeatureView, services: tuple[FeatureService, ...] = ()) -> Catalogue:
    return replace(CATALOGUE, views=views, services=services)


BOTH = catalogue(NEW, OLD)


def test_the_bare_name_is_the_newest_and_a_number_is_that_version() -> None:
    assert BOTH.view("momentum_features") == BOTH.view("momentum_features@2") == BOTH.view("momentum") == NEW
    assert BOTH.view("momentum_features@1") == OLD
    assert (NEW.label, OLD.label) == ("momentum_features", "momentum_features@1")
    assert (OLD.online, OLD.is_superseded, NEW.online) == (False, True, True)
    references = BOTH.references([f"momentum_features@1:{FIRST.name}", f"momentum:{THIRD.name}", f"momentum_features@2:{SECOND.name}"])
    assert references == ((OLD, FIRST), (NEW, THIRD), (NEW, SECOND))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (f"momentum_features@3:{FIRST.name}", "unknown feature view 'momentum_features@3'; nearest: momentum_features@"),
        (f"momentun_features:{SECOND.name}", "unknown feature view 'momentun_features'; nearest: momentum_features"),
        (f"momentum_features:{FIRST.name}", f"unknown feature of view momentum_features '{FIRST.name}'; nearest: "),
        (f"momentum_features@1:{THIRD.name}", f"unknown feature of view momentum_features@1 '{THIRD.name}'; nearest: "),
        (FIRST.name, f"unknown feature reference .* nearest: momentum_features@1:{FIRST.name}$"),
    ],
)
def test_an_unknown_reference_is_answered_with_the_nearest(reference: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        BOTH.references([reference])


def test_a_service_pins_the_version_that_it_was_declared_with() -> None:
    pinned = FeatureService(
        "pinned", "old and new", views=(OLD, NEW), selection=(("momentum_features@1", SECOND.name), (NEW.label, SECOND.name))
    )
    assert catalogue(NEW, OLD, services=(pinned,)).service("pinned").references == ((OLD, SECOND), (NEW, SECOND))
    assert pinned.is_online
    assert not FeatureService("trained", "offline", views=(replace(NEW, online=False),)).is_online


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ((NEW, replace(OLD, is_superseded=False)), r"declared twice: \['momentum_features'\]"),
        ((OLD,), "momentum_features@1 is superseded, but no newer version"),
        ((replace(NEW, version=1), OLD), "momentum_features@1 is superseded, but no newer version"),
        ((NEW, replace(OLD, entities=(PORTFOLIO,))), "share their keys"),
        ((NEW, OLD, replace(MOMENTUM_FEATURES, name="momentum", version=1)), r"declared twice: \['momentum'\]"),
    ],
)
def test_contradicting_versions_are_refused(views: tuple[FeatureView, ...], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        catalogue(*views)


def test_a_service_normalises_only_what_it_holds_once() -> None:
    for wrong in ({"standardised": ("nothing",)}, {"bounds": {"nothing": 1.0}}):
        with pytest.raises(DeclarationError, match="normalises 'nothing', which its vector holds 0 times"):
            FeatureService("s", "a service", views=(NEW,), **wrong)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="2 times"):
        FeatureService("s", "a service", views=(NEW, OLD), standardised=(SECOND.name,))
    with pytest.raises(DeclarationError, match="not all positive"):
        FeatureService("s", "a service", views=(NEW,), bounds={SECOND.name: 0.0})
    with pytest.raises(UnknownNameError, match="view of service s 'momentum_featurs'; nearest: momentum_features"):
        FeatureService("s", "a service", views=(NEW,), selection=(("momentum_featurs", SECOND.name),))


def test_one_table_holds_both_and_everything_else_is_apart() -> None:
    (table,) = [found for found in tables(BOTH) if found.schema == "features"]
    columns = {column.name: column for column in table.columns}
    assert {FIRST.name, SECOND.name, THIRD.name} <= set(columns)
    assert all(columns[feature.name].nullable for feature in (FIRST, SECOND, THIRD))
    assert {name for name in relations(BOTH) if name.startswith("features.")} == {
        "features.momentum_features.us_equity_1d",
        "features.momentum_features@1.us_equity_1d",
    }
    assert asset_keys.stream(NEW, US_EQUITY_1D).path == ["momentum_features"]
    assert asset_keys.stream(OLD, US_EQUITY_1D).path == ["momentum_features_v1"]
    several = replace(OLD, streams=(US_EQUITY_1D, replace(US_EQUITY_1D, name="crypto_1d")))
    assert asset_keys.stream(several, US_EQUITY_1D).path == ["momentum_features_us_equity_1d_v1"]
