"""SEC EDGAR: figures of companies' filings. Which filing counts at an instant, and what is computed from it, do not belong here.

`fy` and `fp` of a fact describe the filing that carries it, never the fact's period, so they are not read: a quarter comes again in each
later filing that compares with it, and each is a row of its own accession.

The submissions' `acceptanceDateTime` ends in Z for everybody, but for about a fifth of the filers it is New York's wall clock. All are read
as New York's: the others then count four or five hours late, which is the safe side.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo

import polars as pl
from pydantic import Field, SecretStr, field_validator, model_validator

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.features.raw_tables import COMPANY_FACTS
from featurestore_dagster.features.sources import SEC
from featurestore_dagster.features.universe import instruments
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.sources.http import HttpClient
from featurestore_dagster.sources.payloads import Document, canonical, read
from featurestore_dagster.sources.provider_settings import SecSettings

CONCEPTS = {
    "net_income": ("us-gaap:NetIncomeLoss", "us-gaap:ProfitLoss", "us-gaap:NetIncomeLossAvailableToCommonStockholdersBasic"),
    "revenue": (
        "us-gaap:Revenues",
        "us-gaap:RevenueFromContractWithCustomerExcludingAssessedTax",
        "us-gaap:RevenueFromContractWithCustomerIncludingAssessedTax",
        "us-gaap:SalesRevenueNet",
        "us-gaap:SalesRevenueGoodsNet",
    ),
    "eps_diluted": ("us-gaap:EarningsPerShareDiluted", "us-gaap:EarningsPerShareBasicAndDiluted"),
    "equity": ("us-gaap:StockholdersEquity", "us-gaap:StockholdersEquityIncludingPortionAttributableToNoncontrollingInterest"),
    "total_assets": ("us-gaap:Assets",),
    "shares_outstanding": ("dei:EntityCommonStockSharesOutstanding", "us-gaap:CommonStockSharesOutstanding"),
    "short_term_debt": ("us-gaap:ShortTermBorrowings", "us-gaap:CommercialPaper"),
    "current_portion_of_long_term_debt": ("us-gaap:LongTermDebtCurrent", "us-gaap:LongTermDebtAndCapitalLeaseObligationsCurrent"),
    "long_term_debt": ("us-gaap:LongTermDebtNoncurrent", "us-gaap:LongTermDebtAndCapitalLeaseObligations"),
}
"""XBRL tags of each canonical figure, best first. The three debts add up, so no tag holds two of them (as DebtCurrent, LongTermDebt do)."""

NEW_YORK = ZoneInfo("America/New_York")
END_OF_DAY = time(23, 59, 59)

FACTS = {**{column.name: column.dtype for column in COMPANY_FACTS.columns}, "event_timestamp": UTC_MICROSECONDS}

A_LONG_WEEKEND = timedelta(days=5)
"""A filing accepted in the evening is filed on the next business day."""

IsoDate = Annotated[date, Field(strict=False)]


class _Fact(Document):
    accn: str = Field(min_length=1)
    start: IsoDate | None = None
    end: IsoDate
    val: float | None
    form: str
    filed: IsoDate


class _Tag(Document):
    units: dict[str, list[_Fact]] = Field(min_length=1)

    @model_validator(mode="after")
    def _named_units(self) -> Self:
        if any(not unit.strip() for unit in self.units):
            raise ValueError("a figure without a unit")
        return self


class _CompanyFacts(Document):
    facts: dict[str, _Tag]

    @field_validator("facts", mode="before")
    @classmethod
    def _only_candidates(cls, taxonomies: Any) -> Any:
        """The wanted tags alone: a document has thousands, of tens of megabytes."""
        if not isinstance(taxonomies, dict) or not all(isinstance(tags, dict) for tags in taxonomies.values()):
            return taxonomies
        wanted = [tag for candidates in CONCEPTS.values() for tag in candidates]
        found = {tag: taxonomies.get(tag.partition(":")[0], {}).get(tag.partition(":")[2]) for tag in wanted}
        return {tag: fact for tag, fact in found.items() if fact is not None}


class _Filings(Document):
    accession: list[str] = Field(alias="accessionNumber")
    filed: list[date] = Field(alias="filingDate")
    accepted: list[str] = Field(alias="acceptanceDateTime")

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if not len(self.accession) == len(self.filed) == len(self.accepted):
            raise ValueError("its columns have different lengths")
        return self


class OlderFilings(Document):
    """A file of submissions that are no longer among the newest, and the days that it spans."""

    name: str = Field(pattern=r"^[\w.-]+\.json$")
    filed_from: date = Field(alias="filingFrom")
    filed_to: date = Field(alias="filingTo")


class _AllFilings(Document):
    recent: _Filings
    files: list[OlderFilings]


class _Submissions(Document):
    tickers: list[str]
    filings: _AllFilings


def fetch(dataset: Dataset, start: datetime, end: datetime, *, settings: SecSettings, client: HttpClient) -> pl.DataFrame:
    """Figures of the filings accepted in start < event_timestamp <= min(end, now), of every listed company.

    Returns:
        The canonical columns but `ingested_at`, sorted by identity; every filing's own version of a figure is a row, in the filing's unit.

    Raises:
        ConfigurationError: SEC_USER_AGENT is not set.
        MalformedDataError: An answer is not of the declared form, a figure has no unit, or a company trades under another symbol.
        SourceRefusedError, SourceUnavailableError: As `HttpClient.get`.
    """
    headers = {"User-Agent": settings.required("user_agent")}
    latest = min(end, client.clock.now())
    frames = [pl.DataFrame(schema=FACTS)]
    for company in instruments(dataset.market):
        if company.cik is None:
            continue
        filings = _filings(company.symbol, company.cik, start, latest, client, headers)
        if any(start < instant <= latest for instant in filings.values()):
            body = client.get(f"/api/xbrl/companyfacts/CIK{company.cik:010}.json", headers=headers).body
            frames.append(parse(body, filings, company.symbol))
    rows = pl.concat(frames).filter(pl.col("event_timestamp") > start, pl.col("event_timestamp") <= latest)
    return canonical(rows.with_columns(known_at="event_timestamp", known_at_basis=pl.lit("assumed")), dataset, SEC)


def parse(body: bytes, filings: Mapping[str, datetime], symbol: str) -> pl.DataFrame:
    """Company facts to rows.

    Args:
        body: The document of the API company facts.
        filings: Instant of each filing's acceptance by its accession number; a filing without one counts from the end of the day, New York,
            on which it was filed.
        symbol: What the company trades as.

    Returns:
        symbol, concept, period_start, period_end (Date), accession, form, unit, value (Float64, NULL where the filing has none) and
        event_timestamp, in no order. Of several tags of a figure for one period in one filing the first candidate counts; what repeats
        is one row.

    Raises:
        MalformedDataError: The document is not of the declared form, or a figure has no unit.
    """
    tags = read(_CompanyFacts, body, f"sec {symbol}").facts
    rows = [
        (symbol, concept, fact.start or fact.end, fact.end, fact.accn, fact.form, unit, fact.val, _instant(fact, filings), candidate)
        for concept, candidates in CONCEPTS.items()
        for candidate, tag in enumerate(candidates)
        if tag in tags
        for unit, facts in tags[tag].units.items()
        for fact in facts
    ]
    best = pl.col("candidate") == pl.col("candidate").min().over("concept", "unit", "period_start", "period_end", "accession")
    return pl.DataFrame(rows, schema={**FACTS, "candidate": pl.Int64()}, orient="row").filter(best).drop("candidate").unique()


def parse_filings(body: bytes, symbol: str) -> dict[str, datetime]:
    """Instant from which each filing of a file of older submissions counts, by accession number; UTC.

    Raises:
        MalformedDataError: The document or an acceptance is not of the declared form.
    """
    return _instants(read(_Filings, body, f"sec {symbol}"), symbol)


def parse_submissions(body: bytes, symbol: str) -> tuple[dict[str, datetime], list[OlderFilings]]:
    """As `parse_filings` for the newest filings, and the files that hold the older ones.

    Raises:
        MalformedDataError: The document is not of the declared form, or the company trades, but not as `symbol`.
    """
    submissions = read(_Submissions, body, f"sec {symbol}")
    if submissions.tickers and symbol not in submissions.tickers:
        raise MalformedDataError(
            f"sec {symbol}: the company trades as {', '.join(submissions.tickers)}; nothing of it was taken. Where it was renamed, end the "
            "instrument in features/universe.py and list the new symbol with the same cik"
        )
    return _instants(submissions.filings.recent, symbol), submissions.filings.files


def _filings(
    symbol: str, cik: int, start: datetime, latest: datetime, client: HttpClient, headers: Mapping[str, SecretStr]
) -> dict[str, datetime]:
    filings, older = parse_submissions(client.get(f"/submissions/CIK{cik:010}.json", headers=headers).body, symbol)
    first, last = start.date() - A_LONG_WEEKEND, latest.date() + A_LONG_WEEKEND
    for file in older:
        if file.filed_to >= first and file.filed_from <= last:
            filings |= parse_filings(client.get(f"/submissions/{file.name}", headers=headers).body, symbol)
    return filings


def _instants(filings: _Filings, symbol: str) -> dict[str, datetime]:
    rows = zip(filings.accession, filings.accepted, filings.filed, strict=True)
    try:
        return {accession: _new_york(accepted) if accepted else _end_of_day(filed) for accession, accepted, filed in rows}
    except ValueError as error:
        raise MalformedDataError(f"sec {symbol}: {error} as acceptanceDateTime; nothing of the company was taken") from None


def _instant(fact: _Fact, filings: Mapping[str, datetime]) -> datetime:
    return filings.get(fact.accn) or _end_of_day(fact.filed)


def _new_york(accepted: str) -> datetime:
    return datetime.fromisoformat(accepted).replace(tzinfo=NEW_YORK).astimezone(UTC)


def _end_of_day(filed: date) -> datetime:
    return datetime.combine(filed, END_OF_DAY, NEW_YORK).astimezone(UTC)
