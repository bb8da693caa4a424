"""The golden values of the feature dictionary, section 8: numbers only, nothing is computed here."""

from featurestore_dagster.indicators import averages, liquidity, macro, momentum, trend, volatility
from featurestore_dagster.model.indicator import Feature

AAPL_DAYS = ("2010-05-06", "2012-12-31")
EURUSD_HOURS = ("2017-06-08T12:00", "2018-01-25T19:00")
VIX_DAYS = ("2016-06-24", "2018-02-05")
DEFAULT_MONTHS = ("2008-12-01", "2018-12-01")

GOLDEN: tuple[tuple[str, tuple[str, str], Feature, tuple[float | None, float | None]], ...] = (
    ("AAPL", AAPL_DAYS, momentum.ret.feature("ret_1", k=1), (-3.802957205e-02, 4.431746199e-02)),
    ("AAPL", AAPL_DAYS, volatility.volatility_20d.feature(), (3.662933400e-01, 3.843432383e-01)),
    ("AAPL", AAPL_DAYS, averages.ema.feature("ema_20", n=20), (2.540468606e02, 5.321675596e02)),
    ("AAPL", AAPL_DAYS, momentum.rsi.feature("rsi_14", n=14), (4.629073863e01, 4.700970337e01)),
    ("AAPL", AAPL_DAYS, volatility.atr.feature("atr_14", n=14), (1.041051987e01, 1.528163253e01)),
    ("AAPL", AAPL_DAYS, trend.adx.feature("adx_14", n=14), (4.276394326e01, 3.491819821e01)),
    ("AAPL", AAPL_DAYS, momentum.macd.feature(), (6.244937332e00, -1.374370440e01)),
    ("AAPL", AAPL_DAYS, momentum.macd_signal.feature(), (8.511742565e00, -1.496172503e01)),
    ("AAPL", AAPL_DAYS, volatility.bollinger_bands_position.feature(), (2.721780982e-01, 5.015143814e-01)),
    ("AAPL", AAPL_DAYS, momentum.ret.feature("momentum_12m", k=252), (8.584905660e-01, 3.217089708e-01)),
    ("AAPL", AAPL_DAYS, momentum.high_52w_position.feature(), (-9.619760699e-02, -2.452197654e-01)),
    ("AAPL", AAPL_DAYS, liquidity.amihud_illiquidity.feature(), (2.806273949e-06, 1.458117425e-06)),
    ("AAPL", AAPL_DAYS, liquidity.spread_cs_20_est_bps.feature(), (5.043059208e01, 4.060409415e01)),
    ("AAPL", AAPL_DAYS, liquidity.spread_roll_20_est_bps.feature(), (None, 1.662878530e02)),
    ("AAPL", AAPL_DAYS, liquidity.price_impact_1pct_est_bps.feature(), (1.640242850e00, 1.682391589e00)),
    ("AAPL", AAPL_DAYS, liquidity.amihud_percentile.feature(), (1.924603175e-01, 8.511904762e-01)),
    ("EURUSD", EURUSD_HOURS, momentum.log_ret.feature("log_ret_12", k=12), (-2.162220721e-03, -2.337786940e-03)),
    ("EURUSD", EURUSD_HOURS, momentum.log_ret.feature("log_ret_48", k=48), (-2.571004241e-03, 7.680504417e-03)),
    ("EURUSD", EURUSD_HOURS, momentum.rsi.feature("rsi_9", n=9), (3.402009524e01, 3.667867149e01)),
    ("EURUSD", EURUSD_HOURS, volatility.atr_pct.feature(), (1.750631271e-01, 2.992935138e-01)),
    ("EURUSD", EURUSD_HOURS, trend.adx.feature("adx_14", n=14), (1.709250133e01, 4.792803822e01)),
    ("EURUSD", EURUSD_HOURS, volatility.bollinger_bands_position.feature(), (-2.609666644e-02, 1.690077867e-01)),
    ("vix", VIX_DAYS, macro.zscore.feature("vix_z", n=252, column="vix"), (1.622543191, 11.82780552)),
    ("wti", VIX_DAYS, macro.change.feature("wti_change_1d", column="wti"), (-0.05350628293, -0.02015267176)),
    ("moodys", DEFAULT_MONTHS, macro.spread.feature("default_spread", minuend="baa", subtrahend="aaa"), (3.38, 1.11)),
)
"""Series, two instants, feature, its value at each."""
