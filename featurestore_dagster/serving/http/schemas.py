"""The forms of requests and answers, for the OpenAPI document only: no request passes through them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.units import Unit
from featurestore_dagster.serving.answer import Status
from featurestore_dagster.serving.freshness import FreshnessState

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Texts = Annotated[list[Text], Field(min_length=1)]
References = Annotated[list[Text], Field(min_length=1, description="view:feature or view@version:feature, values come in this order")]
ServiceName = Annotated[Text, Field(min_length=1, description="name of a feature service, in place of features")]
Values = Annotated[list[Any], Field(min_length=1)]
Columns = Annotated[
    dict[str, Values], Field(min_length=1, description="join key -> values, lists of one length; text for the keys that a view needs")
]
Rows = Annotated[
    list[dict[str, Any]],
    Field(min_length=1, description="join keys and values; text for the keys that a view needs", examples=[[{"symbol": "AAPL"}]]),
]
Identifiers = Annotated[Texts, Field(description="in place of entities: a symbol, or BTCUSDT_1h for symbol and timeframe")]
Tier = Literal["redis", "postgres", "raw", "none"]
Number = float | int | None


class Closed(BaseModel):
    """Fields that are not declared are refused."""

    model_config = ConfigDict(extra="forbid")


class Failure(BaseModel):
    """Why there is no answer."""

    error: str
    message: str


class FeastRequest(BaseModel):
    """Feast's request: `features` or `feature_service`."""

    features: References | None = None
    feature_service: ServiceName | None = None
    entities: Columns
    full_feature_names: bool | None = False


class FeastColumn(BaseModel):
    """A join key or a feature, a value for each entity."""

    values: list[Any]
    statuses: list[Status]
    event_timestamps: list[datetime]


class FeastMetadata(BaseModel):
    """Names of the columns."""

    feature_names: list[str]


class FeastAnswer(BaseModel):
    """Join keys first."""

    results: list[FeastColumn]
    metadata: FeastMetadata


class Policy(Closed):
    """What must be there, and when."""

    deadline_seconds: Annotated[float, Field(gt=0, le=30)] | None = None
    max_age_seconds: Annotated[float, Field(gt=0, le=316_224_000)] | None = None
    min_coverage: Annotated[float, Field(ge=0, le=1)] | None = 0.0
    fail_closed: bool | None = False
    coherent: bool | None = False


class OnlineRequest(Closed):
    """`features` or `service`, `entities` or `entity_ids`."""

    features: References | None = None
    service: ServiceName | None = None
    entities: Rows | Columns | None = None
    entity_ids: Identifiers | None = None
    as_of: Annotated[datetime, Field(description="what was known then, from Postgres; with time zone")] | None = None
    policy: Policy | None = None


class CoverageRequest(Closed):
    """As for online features, without `as_of`."""

    features: References | None = None
    service: ServiceName | None = None
    entities: Rows | Columns | None = None
    entity_ids: Identifiers | None = None
    policy: Policy | None = None
    tier: Annotated[int, Field(description="only instruments of this tier count; null: all")] | None = 1


class ViewState(BaseModel):
    """Where a view's values of an entity come from; times are null when nothing was found."""

    tier: Tier
    event_timestamp: datetime | None
    known_at: datetime | None
    age_seconds: Annotated[float, Field(description="open-market time up to as_of")] | None
    flags: list[Literal[tuple(QualityFlag.__members__)]]  # type: ignore[valid-type]


class OnlineRow(BaseModel):
    """`values` and `statuses` in the order of `features`, `views` in the order of the answer's `views`."""

    entity: dict[str, Any]
    values: list[Number]
    statuses: list[Status]
    views: list[ViewState]


class OnlineAnswer(BaseModel):
    """`view_of_feature` is the position in `views` of each feature."""

    as_of: datetime
    features: list[str]
    units: list[Unit]
    views: list[str]
    view_of_feature: list[int]
    rows: list[OnlineRow]


class HistoryRequest(Closed):
    """Entity rows have the join keys and event_timestamp; other columns come back as they are."""

    features: References | None = None
    service: ServiceName | None = None
    entities: Annotated[
        list[dict[str, Any]], Field(min_length=1, examples=[[{"symbol": "AAPL", "event_timestamp": "2018-12-31T21:00:00Z"}]])
    ]
    as_of: Annotated[Text, Field(description="column with the instant of knowledge")] | None = None
    details: list[Literal["event_timestamp", "created_timestamp", "age_seconds", "flags"]] | None = None


class FeatureCoverage(BaseModel):
    """Eligible and present cells; coverage and is_met are null when none is eligible."""

    reference: str
    eligible: int
    present: int
    coverage: float | None
    demanded: float
    is_met: bool | None


class CoverageAnswer(BaseModel):
    """Features in the order asked; is_met is null when nothing was judged, not_judged names the entities without an eligible cell."""

    as_of: datetime
    tier: int | None
    is_met: bool | None
    not_judged: list[str]
    features: list[FeatureCoverage]


class StreamFreshness(BaseModel):
    """A stream of a view against its calendar and SLO; `worst` names the entities furthest behind."""

    view: str
    stream: str
    state: FreshnessState
    watermark: datetime | None
    expected_event_timestamp: datetime
    due_at: datetime
    next_due_at: datetime
    lag_seconds: float | None
    age_open_seconds: float | None
    worst: list[str]


class SloMonth(BaseModel):
    """A stream of a view (null: all of them) in one month: share of the evaluated time in which nothing was overdue, and error budget."""

    view: str
    stream: str | None
    month: str
    objective: float
    evaluated_seconds: float
    overdue_seconds: float
    budget_seconds: float
    attainment: float | None
    budget_left_seconds: float
    budget_left: float


class RetrievalStatistics(BaseModel):
    """Online reads of the worker process that answers; those of all together are in /metrics."""

    process_id: int
    window_minutes: float
    reads: int
    latency_p50_milliseconds: float | None
    latency_p95_milliseconds: float | None
    latency_p99_milliseconds: float | None
    null_rate: float | None
    statuses: dict[str, int]
    tiers: dict[str, int]
    violations: int
    errors: dict[str, int]


class FeatureStatistics(BaseModel):
    """Newest versions of a feature; measures are null without values."""

    feature: str
    unit: Unit
    rows: int
    nulls: int
    mean: float | None
    standard_deviation: float | None
    minimum: float | None
    p05: float | None
    median: float | None
    p95: float | None
    maximum: float | None


class ServiceFeature(BaseModel):
    """A feature of a service, in its order."""

    reference: str
    unit: Unit
    formula: str
    time_to_live_seconds: float
    slo_seconds: float


class Service(BaseModel):
    """What a service answers and must be asked with."""

    name: str
    version: int
    description: str
    is_online: bool
    join_keys: list[str]
    features: list[ServiceFeature]


class ViewFeature(BaseModel):
    """A feature of a view."""

    name: str
    unit: Unit
    formula: str


class View(BaseModel):
    """A feature view as declared."""

    name: str
    version: int
    description: str
    is_online: bool
    join_keys: list[str]
    time_to_live_seconds: float
    slo_seconds: float
    features: list[ViewFeature]


class Health(BaseModel):
    """`tier` is the best store that answers reads now; `degraded` are those that reads pass over."""

    status: Literal["ok", "degraded", "down", "draining"]
    tier: Tier | None
    degraded: list[str]
