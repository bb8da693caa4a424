"""The universe: which instruments exist, since when, and how much they matter. Which source delivers them does not belong here."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from featurestore_dagster.errors import DeclarationError
from featurestore_dagster.features.entities import WHOLE_FIRM
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.source import Listing

CRYPTO = "crypto"
"""The market of pairs of coins, which never closes."""


@dataclass(frozen=True)
class Instrument:
    """A symbol of one market.

    `tier` 1 counts for the coverage bar. `first` and `last` are the first and last session (inclusive); `last` None is listed still.
    `currency` quotes the price; `local_yield` is the series of the quote currency's ten-year yield, for `rate_spread`;
    `cik` is the company's number with the SEC, for its filings.
    """

    symbol: str
    market: str
    description: str
    first: date
    last: date | None = None
    tier: int = 2
    currency: str = "USD"
    local_yield: str | None = None
    cik: int | None = None

    def __post_init__(self) -> None:
        """Refuse an instrument that was delisted before it was listed, or without a currency."""
        if self.last is not None and self.last < self.first:
            raise DeclarationError(f"instrument {self.symbol}: delisted {self.last}, before it was listed {self.first}")
        if not self.currency:
            raise DeclarationError(f"instrument {self.symbol}: needs the currency that quotes it, such as USD")

    @property
    def listing(self) -> Listing:
        """As a source declares it."""
        return Listing(self.symbol, self.first, self.last, self.description)


INSTRUMENTS = (
    Instrument("AAPL", "us_equity", "Apple", date(1990, 1, 2), tier=1, cik=320193),
    Instrument("MSFT", "us_equity", "Microsoft", date(1990, 1, 2), tier=1, cik=789019),
    Instrument("IBM", "us_equity", "International Business Machines", date(1990, 1, 2), cik=51143),
    Instrument("SPY", "us_equity", "S&P 500 tracker", date(1993, 1, 29), tier=1),
    Instrument("EURUSD", "fx", "euro in US dollars", date(1999, 1, 4), tier=1),
    Instrument("USDCOP", "cop", "US dollar in Colombian pesos", date(2000, 1, 3), tier=1, currency="COP", local_yield="COLIRLTLT01STM"),
    Instrument("BTCUSDT", CRYPTO, "bitcoin in tether", date(2017, 8, 17), tier=1, currency="USDT"),
    Instrument("ETHUSDT", CRYPTO, "ether in tether", date(2017, 8, 17), tier=1, currency="USDT"),
)


def instruments(market: str) -> tuple[Instrument, ...]:
    """Instruments of a market, in declared order."""
    return tuple(found for found in INSTRUMENTS if found.market == market)


def members(market: str, day: date) -> frozenset[str]:
    """Symbols of a market that were listed on a day."""
    return frozenset(found.symbol for found in instruments(market) if found.listing.covers(day))


def listings_of(catalogue: Catalogue, view: FeatureView, stream: Stream) -> Mapping[str, Listing]:
    """What has rows in a stream: the symbols of its bars; for snapshots the instruments of its market, or the whole firm."""
    if stream.is_bar_by_bar:
        return catalogue.listings(stream.inputs[0])
    if "symbol" in view.join_keys:
        return {found.symbol: found.listing for found in instruments(stream.market)}
    return {WHOLE_FIRM: Listing(WHOLE_FIRM, date.min)}
