"""Every indicator equals its independent reference on real data, and is NULL exactly where the reference has no value."""

import numpy as np
import pytest

from tests.unit.indicators.oracles import ORACLES, Oracle
from tests.unit.indicators.series import bar_series, macro_series

CASES = [pytest.param(oracle, name, id=f"{oracle.feature.name}-{name}") for oracle in ORACLES for name in oracle.series]


@pytest.mark.parametrize(("oracle", "name"), CASES)
def test_equals_reference(oracle: Oracle, name: str) -> None:
    series = {**bar_series(), **macro_series()}[name]
    found = series.frame.select(oracle.feature.expression()).to_series()
    expected = oracle.reference(series)

    assert found.is_nan().sum() == 0
    assert np.array_equal(found.is_null().to_numpy(), np.isnan(expected))
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=oracle.rtol, atol=oracle.atol)
