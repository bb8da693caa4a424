"""Every indicator equals its independent reference on real data, and is NULL exactly where the reference has no value."""

import numpy as np
import pytest

from tests.unit.indicators.grains import evaluated
from tests.unit.indicators.oracle import Oracle
from tests.unit.indicators.oracles import ORACLES
from tests.unit.indicators.series import every_series

CASES = [pytest.param(oracle, name, id=f"{oracle.feature.name}-{name}") for oracle in ORACLES for name in oracle.series]


@pytest.mark.parametrize(("oracle", "name"), CASES)
def test_equals_reference(oracle: Oracle, name: str) -> None:
    series = every_series()[name]
    found = evaluated(series.frame, [oracle.feature]).to_series()
    expected = oracle.reference(series)

    assert found.is_nan().sum() == 0
    assert np.array_equal(found.is_null().to_numpy(), np.isnan(expected))
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=oracle.rtol, atol=oracle.atol)
