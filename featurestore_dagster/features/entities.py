"""Entities of the market-data views. Symbols themselves are listed by the sources."""

from featurestore_dagster.model.entity import Entity

TICKER = Entity("ticker", "symbol", "A traded instrument or index, named as its primary source names it")
TIMEFRAME = Entity("timeframe", "timeframe", "Length of the bars behind the row: 1m 5m 15m 1h 4h 1d")
PORTFOLIO = Entity("portfolio", "portfolio", "A book of positions; GLOBAL is the whole firm")

WHOLE_FIRM = "GLOBAL"
"""The portfolio whose rows are snapshots of the market."""

ENTITIES = (TICKER, TIMEFRAME, PORTFOLIO)
