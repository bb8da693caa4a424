"""Reference implementations of the indicators, by TA-Lib or numpy, and the agreement each must reach; no Polars expression belongs here.

`ORACLES` is the list that the unit tests compare and that the contract tests take their parameters from: a new indicator gets a line here.
"""

import math
from collections.abc import Callable

import numpy as np
import talib
from numpy.lib.stride_tricks import sliding_window_view

from featurestore_dagster.indicators import averages, bars, liquidity, macro, momentum, trend, volatility, volume
from tests.unit.indicators.event_oracles import EVENT_ORACLES
from tests.unit.indicators.fundamental_oracles import FUNDAMENTAL_ORACLES
from tests.unit.indicators.oracle import Oracle
from tests.unit.indicators.quote_oracles import QUOTE_ORACLES
from tests.unit.indicators.sentiment_index_oracles import SENTIMENT_INDEX_ORACLES
from tests.unit.indicators.series import RealSeries, Values
from tests.unit.indicators.session_oracles import SESSION_ORACLES


def _padded(values: Values, rows: int) -> Values:
    """NaN in front of values that end on the last row."""
    return np.concatenate([np.full(rows - values.size, np.nan), values])


def _rolling(values: Values, n: int, reduce: Callable[..., Values], **options: int) -> Values:
    """A numpy reduction of each window of n rows."""
    return _padded(reduce(sliding_window_view(values, n), axis=1, **options), values.size)


def _returns(values: Values, k: int) -> Values:
    return _padded(values[k:] / values[:-k] - 1, values.size)


def _log_returns(values: Values, k: int) -> Values:
    return _padded(np.log(values[k:] / values[:-k]), values.size)


def _ticks(series: RealSeries) -> tuple[Values, Values, Values]:
    return series.ticks("high"), series.ticks("low"), series.ticks("close")


def _hlc(series: RealSeries) -> tuple[Values, Values, Values]:
    return series.column("high"), series.column("low"), series.column("close")


def _rsi(series: RealSeries, n: int) -> Values:
    """TA-Lib answers 0 where nothing has ever moved; the dictionary says 50."""
    close = series.column("close")
    found = talib.RSI(close, n)
    still = np.concatenate([[True], np.cumsum(np.abs(np.diff(close))) == 0])
    return np.where(still & ~np.isnan(found), 50.0, found)


def _bollinger(series: RealSeries) -> Values:
    close = series.column("close")
    upper, _, lower = talib.BBANDS(close, 20, 2, 2)
    with np.errstate(invalid="ignore"):
        return np.where(upper > lower, (close - lower) / (upper - lower), np.nan)


def _bollinger_numpy(series: RealSeries) -> Values:
    close = series.column("close")
    middle, width = _rolling(close, 20, np.mean), 2 * _rolling(close, 20, np.std)
    return (close - (middle - width)) / (middle + width - (middle - width))


def _trend_strength(series: RealSeries) -> Values:
    high, low, close = _ticks(series)
    direction = np.sign(talib.PLUS_DI(high, low, close, 14) - talib.MINUS_DI(high, low, close, 14))
    return direction * talib.ADX(high, low, close, 14) / 100


def _dollars(series: RealSeries) -> Values:
    return series.column("raw_close") * series.column("raw_volume")


def _amihud(series: RealSeries) -> Values:
    dollars = _dollars(series)
    with np.errstate(divide="ignore"):
        terms = np.abs(_returns(series.column("close"), 1)) / dollars
    windows = sliding_window_view(terms[1:], 20)
    traded = np.isfinite(windows)
    # Exact sums: the percentile below counts ties.
    totals = np.array([math.fsum(window[used]) for window, used in zip(windows, traded, strict=True)])
    return _padded(np.where(traded.sum(axis=1) >= 15, 1e6 * totals / traded.sum(axis=1), np.nan), dollars.size)


def _percentile(series: RealSeries) -> Values:
    values = _amihud(series)
    windows = sliding_window_view(values[20:], 252)
    newest = windows[:, -1:]
    shares = ((windows < newest).sum(axis=1) + 0.5 * (windows == newest).sum(axis=1)) / 252
    return _padded(shares, values.size)


def _liquidity_regime(series: RealSeries) -> Values:
    percentile = _percentile(series)
    return np.where(np.isnan(percentile), np.nan, np.select([percentile >= 0.8, percentile <= 0.2], [0.0, 2.0], 1.0))


def _price_impact(series: RealSeries) -> Values:
    return 1e4 * (_amihud(series) / 1e6) * 0.01 * _rolling(_dollars(series), 20, np.mean)


def _corwin_schultz(series: RealSeries) -> Values:
    high, low, close = _hlc(series)
    spreads = []
    for t in range(1, close.size):
        gap = 0.0
        if close[t - 1] < low[t]:
            gap = close[t - 1] - low[t]
        elif close[t - 1] > high[t]:
            gap = close[t - 1] - high[t]
        upper, lower = high[t] + gap, low[t] + gap
        beta = math.log(high[t - 1] / low[t - 1]) ** 2 + math.log(upper / lower) ** 2
        gamma = math.log(max(high[t - 1], upper) / min(low[t - 1], lower)) ** 2
        k = 3 - 2 * math.sqrt(2)
        alpha = (math.sqrt(2 * beta) - math.sqrt(beta)) / k - math.sqrt(gamma / k)
        spreads.append(max(0.0, 2 * (math.exp(alpha) - 1) / (1 + math.exp(alpha))))
    return _padded(1e4 * _rolling(np.array(spreads), 20, np.mean), close.size)


def _roll(series: RealSeries) -> Values:
    returns = _log_returns(series.column("close"), 1)[1:]
    now, before = sliding_window_view(returns[1:], 20), sliding_window_view(returns[:-1], 20)
    products = (now - now.mean(axis=1, keepdims=True)) * (before - before.mean(axis=1, keepdims=True))
    covariance = products.sum(axis=1) / 19
    with np.errstate(invalid="ignore"):
        return _padded(np.where(covariance < 0, 2e4 * np.sqrt(-covariance), np.nan), returns.size + 1)


def _volatility(name: str, sessions: int) -> Callable[[RealSeries], Values]:
    return lambda series: _rolling(_log_returns(series.column(name), 1), 20, np.std, ddof=1) * math.sqrt(sessions)


def _rolling_vwap(n: int) -> Callable[[RealSeries], Values]:
    def reference(series: RealSeries) -> Values:
        high, low, close = _hlc(series)
        volume = series.column("volume")
        return _rolling((high + low + close) / 3 * volume, n, np.sum) / _rolling(volume, n, np.sum)

    return reference


def _zscore(name: str, n: int) -> Callable[[RealSeries], Values]:
    def reference(series: RealSeries) -> Values:
        values = series.column(name)
        return (values - _rolling(values, n, np.mean)) / _rolling(values, n, np.std, ddof=1)

    return reference


def _market_regime(series: RealSeries) -> Values:
    close, vix = series.column("spy_close"), series.column("vix")
    average = _rolling(close, 200, np.mean)
    codes = []
    for price, mean, fear in zip(close, average, vix, strict=True):
        if math.isnan(mean) or math.isnan(fear):
            codes.append(math.nan)
        elif fear >= 30 or (price <= mean and fear >= 25):
            codes.append(3.0)
        elif price <= mean:
            codes.append(2.0)
        else:
            codes.append(1.0 if fear >= 20 else 0.0)
    return np.array(codes)


def _close(function: Callable[..., Values], **options: int) -> Callable[[RealSeries], Values]:
    """A TA-Lib function of the close."""
    return lambda series: function(series.column("close"), **options)


def _on_ticks(function: Callable[..., Values], n: int) -> Callable[[RealSeries], Values]:
    """A TA-Lib function of high, low and close on integer ticks: on floats, rounding would decide its ties."""
    return lambda series: function(*_ticks(series), n)


def _same(name: str) -> Callable[[RealSeries], Values]:
    return lambda series: series.column(name)


ORACLES = (
    *(Oracle(bars.raw_price.feature(name, column=f"raw_{name}"), _same(name)) for name in ("open", "high", "low", "close")),
    Oracle(bars.raw_volume.feature("volume"), _same("volume")),
    Oracle(bars.adjusted_close.feature(), _same("close")),
    Oracle(bars.quality_flags.feature(), _same("row_flags"), series=("trades",)),
    *(
        Oracle(averages.sma.feature(f"sma_{n}", n=n), lambda s, n=n: talib.SMA(s.column("close"), n), rtol=7e-15)
        for n in (5, 10, 20, 50, 100, 200)
    ),
    *(
        Oracle(averages.ema.feature(f"ema_{n}", n=n), lambda s, n=n: talib.EMA(s.column("close"), n), rtol=1e-15)
        for n in (5, 10, 12, 20, 26, 50, 100, 200)
    ),
    *(
        Oracle(momentum.ret.feature(f"ret_{k}", k=k), lambda s, k=k: talib.ROCP(s.column("close"), k), atol=4.5e-16)
        for k in (1, 5, 10, 21, 60, 63, 126, 252)
    ),
    *(
        Oracle(momentum.log_ret.feature(f"log_ret_{k}", k=k), lambda s, k=k: _log_returns(s.column("close"), k), rtol=4e-16)
        for k in (1, 5, 12, 21, 48)
    ),
    *(Oracle(momentum.rsi.feature(f"rsi_{n}", n=n), lambda s, n=n: _rsi(s, n), atol=6e-14) for n in (5, 9, 14, 21)),
    *(
        Oracle(indicator.feature(), lambda s, i=i: talib.MACD(s.column("close"), 12, 26, 9)[i], atol=atol)
        for i, (indicator, atol) in enumerate([(momentum.macd, 2.3e-13), (momentum.macd_signal, 2.5e-13), (momentum.macd_hist, 2.5e-13)])
    ),
    Oracle(
        momentum.high_52w_position.feature(),
        lambda s: s.column("close") / talib.MAX(s.column("high"), 252) - 1,
    ),
    Oracle(
        momentum.low_52w_position.feature(),
        lambda s: s.column("close") / talib.MIN(s.column("low"), 252) - 1,
    ),
    Oracle(
        momentum.range_52w_position.feature(),
        lambda s: (
            (s.column("close") - _rolling(s.column("low"), 252, np.min))
            / (_rolling(s.column("high"), 252, np.max) - _rolling(s.column("low"), 252, np.min))
        ),
    ),
    Oracle(trend.plus_di.feature("plus_di_14", n=14), _on_ticks(talib.PLUS_DI, 14), atol=4e-12),
    Oracle(trend.minus_di.feature("minus_di_14", n=14), _on_ticks(talib.MINUS_DI, 14), atol=4e-12),
    *(Oracle(trend.adx.feature(f"adx_{n}", n=n), _on_ticks(talib.ADX, n), atol=1e-11) for n in (7, 14, 28)),
    Oracle(trend.trend_strength.feature(), _trend_strength, atol=5e-14),
    *(
        Oracle(
            volatility.vol.feature(f"vol_{n}", n=n),
            lambda s, n=n: _rolling(_returns(s.column("close"), 1), n, np.std, ddof=1),
            atol=4e-16,
        )
        for n in (10, 20, 60, 252)
    ),
    Oracle(volatility.volatility_20d.feature(), _volatility("close", 252), rtol=1.1e-13),
    *(Oracle(volatility.atr.feature(f"atr_{n}", n=n), lambda s, n=n: talib.ATR(*_hlc(s), n), rtol=1e-15) for n in (7, 14, 21)),
    Oracle(volatility.atr_pct.feature(), lambda s: 100 * talib.ATR(*_hlc(s), 14) / s.column("close"), rtol=8e-16),
    Oracle(volatility.bollinger_bands_position.feature(), _bollinger, atol=1.6e-10),
    Oracle(volatility.bollinger_bands_position.feature("bollinger_numpy"), _bollinger_numpy, atol=3e-13),
    Oracle(volume.volume_sma_ratio.feature(), lambda s: s.column("volume") / talib.SMA(s.column("volume"), 20), rtol=1e-15),
    *(Oracle(volume.rolling_vwap.feature(f"vwap_{n}", n=n), _rolling_vwap(n), rtol=2e-15) for n in (5, 20)),
    Oracle(liquidity.average_dollar_volume.feature(), lambda s: _rolling(_dollars(s), 20, np.mean), rtol=1e-15),
    Oracle(liquidity.amihud_illiquidity.feature(), _amihud, rtol=1e-15),
    Oracle(liquidity.amihud_percentile.feature(), _percentile, atol=1e-15),
    Oracle(liquidity.liquidity_regime.feature(), _liquidity_regime),
    Oracle(liquidity.price_impact_1pct_est_bps.feature(), _price_impact, rtol=2e-15),
    Oracle(liquidity.spread_cs_20_est_bps.feature(), _corwin_schultz, rtol=1e-12, atol=1e-12),
    Oracle(liquidity.spread_roll_20_est_bps.feature(), _roll, rtol=1e-11),
    Oracle(macro.index_level.feature("vix", column="vix"), _same("vix"), series=("vix",)),
    Oracle(macro.yield_level.feature("yield", column="baa"), _same("baa"), series=("moodys",)),
    Oracle(macro.spread_level.feature("spread_level", column="aaa"), _same("aaa"), series=("moodys",)),
    Oracle(
        macro.spread.feature("default_spread", minuend="baa", subtrahend="aaa"),
        lambda s: s.column("baa") - s.column("aaa"),
        series=("moodys",),
    ),
    Oracle(macro.zscore.feature("vix_z", n=252, column="vix"), _zscore("vix", 252), rtol=1e-12, atol=1e-13, series=("vix",)),
    Oracle(macro.zscore.feature("wti_z", n=252, column="wti"), _zscore("wti", 252), rtol=1e-12, atol=1e-13, series=("wti",)),
    Oracle(macro.change.feature("wti_change_1d", column="wti"), lambda s: _returns(s.column("wti"), 1), series=("wti",)),
    *(
        Oracle(macro.spy_return.feature(f"spy_return_{k}d", k=k), _close(talib.ROCP, timeperiod=k), atol=2.3e-16, series=("SP500", "AAPL"))
        for k in (1, 5, 20)
    ),
    Oracle(macro.spy_volatility_20d.feature(), _volatility("spy_close", 252), rtol=1.1e-13, series=("SP500", "AAPL")),
    Oracle(macro.market_regime.feature(), _market_regime, series=("sp500_vix",)),
    *SESSION_ORACLES,
    *SENTIMENT_INDEX_ORACLES,
    *QUOTE_ORACLES,
    *FUNDAMENTAL_ORACLES,
    *EVENT_ORACLES,
)
