"""A formula cannot change under the number of its view's version."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from featurestore_dagster.errors import DeclarationError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.indicator import Feature, Grain, Indicator, indicator, published
from featurestore_dagster.model.units import Unit
from featurestore_dagster.projections.formulas import formulas_file, probe_values


def declared(body: Callable[..., pl.Expr], name: str = "toy", **other: Any) -> Indicator:
    """A toy indicator of `close`."""
    body.__name__ = name
    given: dict[str, Any] = {
        "unit": Unit.FRACTION,
        "formula": "close(t) / close(t-k) - 1",
        "inputs": ("close",),
        "oracle": "hand",
        "first": 0,
    }
    return indicator(**given | other)(body)


TOY = declared(lambda k: pl.col("close") / pl.col("close").shift(k) - 1)


def catalogue(*features: Feature, version: int = 1) -> Catalogue:
    """A catalogue of one view with these features."""
    return replace(CATALOGUE, views=(view(*features, version=version),), services=())


def view(*features: Feature, version: int = 1) -> FeatureView:
    return replace(MOMENTUM_FEATURES, name="toy_view", features=features, version=version)


COMMITTED = formulas_file(catalogue(TOY.feature("toy_1", k=1), TOY.feature("toy_5", k=5)), "{}")


def test_what_is_declared_is_recorded_and_stays_byte_for_byte() -> None:
    recorded = json.loads(COMMITTED)
    assert list(recorded["toy_view"]["1"]) == ["toy_1", "toy_5"]
    assert recorded["toy_view"]["1"]["toy_5"]["formula"] == "close(t) / close(t-k) - 1 (k=5)"
    assert formulas_file(catalogue(TOY.feature("toy_1", k=1), TOY.feature("toy_5", k=5)), COMMITTED) == COMMITTED


def test_the_whole_catalogue_is_recorded_with_finite_values() -> None:
    text = formulas_file(CATALOGUE, "{}")
    recorded = json.loads(text)
    assert {name: sorted(versions) for name, versions in recorded.items()} == {
        name: sorted(str(v.version) for v in CATALOGUE.views if v.name == name) for name in {v.name for v in CATALOGUE.views}
    }
    for declared_view in CATALOGUE.views:
        entries = recorded[declared_view.name][str(declared_view.version)]
        assert tuple(entries) == declared_view.feature_names
        for feature in declared_view.features:
            nulls, mean, size = entries[feature.name]["values"]
            values = probe_values(feature, CATALOGUE)
            assert math.isfinite(mean)
            assert size > 0, f"{feature.name} is 0 on the whole probe: no change of it would be noticed"
            assert 0 <= nulls < 0.8 * values.len(), f"{feature.name} is mostly NULL on the probe"
    assert formulas_file(CATALOGUE, text) == text


FEATURES = (TOY.feature("toy_1", k=1), TOY.feature("toy_5", k=5))
CHANGES: dict[str, tuple[tuple[Feature, ...], str]] = {
    "expression with the same text": (
        (FEATURES[0], declared(lambda k: (pl.col("close") / pl.col("close").shift(k)).log()).feature("toy_5", k=5)),
        "toy_5: the same text gives other values",
    ),
    "a value moved by a millionth": (
        (declared(lambda k: (pl.col("close") / pl.col("close").shift(k) - 1) * (1 + 1e-6)).feature("toy_1", k=1), FEATURES[1]),
        "toy_1: the same text gives other values",
    ),
    "a NULL rule": (
        (declared(lambda k: (pl.col("close") / pl.col("close").shift(k) - 1).fill_null(0.0)).feature("toy_1", k=1), FEATURES[1]),
        "toy_1: the same text gives other values",
    ),
    "parameter": ((FEATURES[0], TOY.feature("toy_5", k=6)), r"toy_5: formula was 'close\(t\) / close\(t-k\) - 1 \(k=5\)'"),
    "unit": (
        (declared(TOY.expression, unit=Unit.PER_CENT).feature("toy_1", k=1), FEATURES[1]),
        "toy_1: unit was 'fraction', is 'per cent'",
    ),
    "grain": ((declared(TOY.expression, grain=Grain.DAILY).feature("toy_1", k=1), FEATURES[1]), "toy_1: grain was 'bars', is 'daily'"),
    "undoing of the adjustment": (
        (declared(TOY.expression, price_exponent=1).feature("toy_1", k=1), FEATURES[1]),
        "toy_1: price_exponent was None, is 1",
    ),
    "feature gone": (FEATURES[:1], "gone: toy_5"),
    "order": (FEATURES[::-1], "the features are in another order"),
}


@pytest.mark.parametrize(("features", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_under_the_same_version_is_refused_and_says_what_to_do(features: tuple[Feature, ...], message: str) -> None:
    with pytest.raises(DeclarationError, match=message) as raised:
        formulas_file(catalogue(*features), COMMITTED)
    text = str(raised.value)
    assert "view toy_view, version 1" in text
    assert "raise `version` of view toy_view to 2" in text
    assert "To undo" in text
    accepted = json.loads(formulas_file(catalogue(*features, version=2), COMMITTED))
    assert accepted["toy_view"]["1"] == json.loads(COMMITTED)["toy_view"]["1"], "the old version's record stays"
    assert list(accepted["toy_view"]["2"]) == [feature.name for feature in features]


def test_a_feature_is_added_without_a_new_version_and_is_held_to_its_formula_from_then_on() -> None:
    first, second, added = *FEATURES, TOY.feature("toy_9", k=9)
    text = formulas_file(catalogue(first, added, second), COMMITTED)
    recorded = json.loads(text)["toy_view"]["1"]
    assert list(recorded) == ["toy_1", "toy_9", "toy_5"]
    assert {name: recorded[name] for name in ("toy_1", "toy_5")} == json.loads(COMMITTED)["toy_view"]["1"]
    with pytest.raises(DeclarationError, match="toy_9: formula was"):
        formulas_file(catalogue(first, TOY.feature("toy_9", k=8), second), text)
    with pytest.raises(DeclarationError, match="gone: toy_9"):
        formulas_file(catalogue(*FEATURES), text)
    with pytest.raises(DeclarationError, match="the features are in another order"):
        formulas_file(catalogue(second, added, first), COMMITTED)


def test_a_number_that_was_used_is_not_used_again() -> None:
    both = formulas_file(catalogue(*FEATURES[:1], version=2), COMMITTED)
    with pytest.raises(DeclarationError, match="raise `version` of view toy_view to 3"):
        formulas_file(catalogue(*FEATURES[:1], version=1), both)
    gone = replace(CATALOGUE, views=(replace(view(*FEATURES), name="another"),), services=())
    assert "toy_view" in json.loads(formulas_file(gone, both))


def test_an_expression_that_is_only_written_otherwise_is_the_same_formula() -> None:
    """Neither the tree of the expression nor its last bits count."""
    rewritten = declared(lambda k: (pl.col("close") - pl.col("close").shift(k)) / pl.col("close").shift(k))
    same = catalogue(rewritten.feature("toy_1", k=1), rewritten.feature("toy_5", k=5))
    assert str(rewritten.feature("x", k=1).expression()) != str(TOY.feature("x", k=1).expression())
    assert formulas_file(same, COMMITTED) == COMMITTED


def test_a_changed_component_is_a_changed_formula() -> None:
    def with_component(formula: str, shift: int) -> Catalogue:
        part = declared(lambda: pl.col("close").shift(shift), "part", formula=formula, grain=Grain.DAILY)
        whole = declared(
            lambda: pl.col("close") / pl.col("part") - 1,
            "whole",
            formula="close / part - 1",
            grain=Grain.ROW,
            components=lambda: (part.feature(),),
        )
        return catalogue(whole.feature())

    committed = formulas_file(with_component("close of yesterday", 1), "{}")
    with pytest.raises(DeclarationError, match="whole: components: part: formula was 'close of yesterday', is 'close of last week'"):
        formulas_file(with_component("close of last week", 5), committed)
    with pytest.raises(DeclarationError, match="whole: components: part: the same text gives other values"):
        formulas_file(with_component("close of yesterday", 2), committed)
    alone = json.loads(committed)
    del alone["toy_view"]["1"]["whole"]["components"]
    with pytest.raises(DeclarationError, match="whole: components: new: part"):
        formulas_file(with_component("close of yesterday", 1), json.dumps(alone))


def test_an_expression_that_the_probe_cannot_feed_is_named() -> None:
    def texts() -> pl.Expr:
        return pl.col("close").str.len_chars()

    with pytest.raises(DeclarationError, match="texts cannot be evaluated"):
        formulas_file(catalogue(declared(texts, "texts").feature()), "{}")


def test_a_member_with_a_new_version_is_a_changed_formula_of_the_view_that_joins_it() -> None:
    def joined(version: int) -> Catalogue:
        member = view(*FEATURES, version=version)
        training = replace(
            member, name="training", version=1, features=(published("toy_view", FEATURES[0]),), members=(member,), online=False
        )
        return replace(CATALOGUE, views=(member, training), services=())

    with pytest.raises(DeclarationError, match="view training, version 1: toy_view__toy_1: member_version was 1, is 2"):
        formulas_file(joined(2), formulas_file(joined(1), "{}"))
