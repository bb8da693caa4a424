"""What holds for every provider, over real HTTP: recorded payloads become exact rows, and whatever breaks is a typed error without rows.

A provider is one line in `PROVIDERS` and a folder `tests/payloads/<source name>`. A case is `<case>.meta.json` there:

    {"_synthetic": true,
     "dataset": "crypto_candles_1m", "start": "..Z", "end": "..Z", "now": "..Z",
     "answers": [{"path": "/api/v3/klines", "query": {"symbol": "BTCUSDT"}, "status": 200, "headers": {}, "body": "ok.json"}, ..],
     "columns": ["symbol", "event_timestamp", "close", ..], "rows": [["BTCUSDT", "..Z", 1.5], ..],
     "error": {"type": "MalformedDataError", "match": "pattern"},
     "requests": 2}

`body` is a file of the folder; entries that take the same request are served in turn, the last one again and again; status, headers and
query may be absent. A case has either columns and rows (all rows that `fetch` returns, in its order) or error. The case `ok` must need at
least one request and return at least one row: every fault below is tried on it.
"""

import gzip
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurestore_dagster import errors, sources
from featurestore_dagster.errors import (
    ConfigurationError,
    FeatureStoreError,
    MalformedDataError,
    SourceRefusedError,
    SourceUnavailableError,
    TerminalError,
    TransientError,
)
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.sources import ALPACA_IEX, ALPACA_SIP, BINANCE, EODHD, FEAR_GREED, FRED, NEWS, SEC
from featurestore_dagster.model.source import Source
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.settings import MASK, Settings
from featurestore_dagster.sources import alpaca, binance, eodhd, fear_greed, fred, news, provider_settings, sec
from featurestore_dagster.sources.http import ATTEMPTS, HttpClient
from featurestore_dagster.sources.provider_settings import (
    AlpacaSettings,
    BinanceSettings,
    EodhdSettings,
    FearGreedSettings,
    FredSettings,
    NewsSettings,
    ProviderSettings,
    SecSettings,
)
from tests.local_provider import Answer, LocalProvider, Patience, Route, local_provider

PAYLOADS = Path(__file__).parents[1] / "payloads"
SECRET = "s3cr3t/with+odd characters"
HTML = b"<!DOCTYPE html><html><body>Down for maintenance</body></html>"


@dataclass(frozen=True)
class Provider:
    """A provider under test: `settings` makes them for a base URL, with `secret` as every credential; `variables` name the credentials."""

    source: Source
    fetch: Callable[..., pl.DataFrame]
    settings: Callable[[str, str], ProviderSettings]
    variables: tuple[str, ...] = ()
    secret: str = SECRET

    @property
    def folder(self) -> Path:
        return PAYLOADS / self.source.name


PROVIDERS = (
    Provider(BINANCE, binance.fetch, lambda url, _: BinanceSettings(base_url=url)),
    Provider(EODHD, eodhd.fetch, lambda url, secret: EodhdSettings(base_url=url, api_token=secret), ("EODHD_API_TOKEN",)),
    Provider(
        ALPACA_IEX,
        alpaca.fetch,
        lambda url, secret: AlpacaSettings(base_url=url, api_key_id=secret, api_secret_key=secret),
        ("ALPACA_API_KEY_ID", "ALPACA_API_SECRET_KEY"),
    ),
    Provider(
        ALPACA_SIP,
        alpaca.fetch,
        lambda url, secret: AlpacaSettings(base_url=url, api_key_id=secret, api_secret_key=secret),
        ("ALPACA_API_KEY_ID", "ALPACA_API_SECRET_KEY"),
    ),
    Provider(FRED, fred.fetch, lambda url, secret: FredSettings(base_url=url, api_key=secret), ("FRED_API_KEY",)),
    Provider(
        SEC,
        sec.fetch,
        lambda url, secret: SecSettings(base_url=url, user_agent=secret),
        ("SEC_USER_AGENT",),
        secret="Jane s3cr3t jane@example.org",
    ),
    Provider(NEWS, news.fetch, lambda url, secret: NewsSettings(base_url=url, token=secret)),
    Provider(FEAR_GREED, fear_greed.fetch, lambda url, _: FearGreedSettings(base_url=url)),
)

CASES = [
    pytest.param(provider, path.name.removesuffix(".meta.json"), id=f"{provider.source.name}-{path.name.removesuffix('.meta.json')}")
    for provider in PROVIDERS
    for path in sorted(provider.folder.glob("*.meta.json"))
]
each_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.source.name)


class Fetching:
    """One case, ready to be fetched from the local server."""

    def __init__(self, provider: Provider, case: str, server: LocalProvider, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.provider, self.server, self.folder, self.caplog = provider, server, folder, caplog
        self.meta: dict[str, Any] = json.loads((provider.folder / f"{case}.meta.json").read_text())
        self.timer = Patience()
        self.dataset = CATALOGUE.dataset(self.meta["dataset"])
        grouped: dict[str, list[dict[str, Any]]] = {}
        for answer in self.meta["answers"]:
            grouped.setdefault(json.dumps([answer["path"], answer.get("query", {})], sort_keys=True), []).append(answer)
        server.routes = [
            Route(
                parts[0]["path"],
                parts[0].get("query", {}),
                [Answer(part.get("status", 200), (provider.folder / part["body"]).read_bytes(), part.get("headers", {})) for part in parts],
            )
            for parts in grouped.values()
        ]

    def instant(self, name: str) -> datetime:
        return datetime.fromisoformat(self.meta[name])

    def fetch(self, secret: str | None = None) -> pl.DataFrame:
        """What the provider's `fetch` returns, checked for what holds always."""
        self.server.served.clear()
        settings = self.provider.settings(self.server.url, self.provider.secret if secret is None else secret)
        with HttpClient(self.provider.source, settings.base_url, self.folder, FrozenClock(self.instant("now")), timer=self.timer) as client:
            rows = self.provider.fetch(self.dataset, self.instant("start"), self.instant("end"), settings=settings, client=client)
        assert rows.schema == {name: dtype for name, dtype in self.dataset.table.schema.items() if name != "ingested_at"}
        assert rows.equals(rows.sort(self.dataset.table.identity, maintain_order=True))
        assert rows["event_timestamp"].is_between(self.instant("start"), self.instant("end"), closed="right").all()
        assert rows["source"].eq(self.provider.source.name).all()
        assert (rows["known_at"] >= rows["event_timestamp"]).all()
        return rows

    def refused(self, kind: type[FeatureStoreError], match: str | None = None) -> FeatureStoreError:
        """The error that `fetch` raises."""
        with pytest.raises(kind, match=match) as caught:
            self.fetch()
        self.expect_no_secret(str(caught.value))
        return caught.value

    def stored(self) -> list[Path]:
        return sorted(self.folder.rglob("*.json.gz"))

    def expect_no_secret(self, *texts: str) -> None:
        kept = [gzip.decompress(path.read_bytes()).decode() for path in self.stored()]
        receipts = [path.read_text() for path in self.folder.rglob("*.jsonl")]
        for text in (*texts, *kept, *receipts, self.caplog.text):
            for part in (self.provider.secret, "s3cr3t"):
                assert part not in text


@pytest.fixture
def server() -> Iterator[LocalProvider]:
    with local_provider() as running:
        yield running


@pytest.fixture
def fetching(server: LocalProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[[Provider, str], Fetching]:
    caplog.set_level(logging.DEBUG)
    return lambda provider, case: Fetching(provider, case, server, tmp_path / "payloads", caplog)


Start = Callable[[Provider, str], Fetching]


def plain(rows: pl.DataFrame, columns: list[str]) -> list[list[object]]:
    """Rows as JSON holds them."""

    def text(value: object) -> object:
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return value if value is None or isinstance(value, int | float | str) else str(value)

    return [[text(value) for value in row] for row in rows.select(columns).iter_rows()]


@pytest.mark.parametrize(("provider", "case"), CASES)
def test_a_recorded_payload(provider: Provider, case: str, fetching: Start) -> None:
    running = fetching(provider, case)
    if "error" in running.meta:
        kind = getattr(errors, running.meta["error"]["type"])
        running.refused(kind, running.meta["error"].get("match"))
    else:
        assert plain(running.fetch(), running.meta["columns"]) == [
            [pytest.approx(value, rel=1e-12) if isinstance(value, float) else value for value in row] for row in running.meta["rows"]
        ]
        running.expect_no_secret()
    assert running.server.unexpected == []
    assert len(running.server.asked) == running.meta.get("requests", len(running.server.asked))
    assert running.server.asked or not running.meta["answers"], "nothing was asked"


@each_provider
def test_every_payload_says_that_it_is_synthetic(provider: Provider) -> None:
    metas = [json.loads(path.read_text()) for path in provider.folder.glob("*.meta.json")]
    assert metas
    assert all(meta["_synthetic"] is True for meta in metas)
    used = {answer["body"] for meta in metas for answer in meta["answers"]}
    assert used == {path.name for path in provider.folder.iterdir() if not path.name.endswith(".meta.json")}, "a payload that no case uses"
    assert all((provider.folder / name).stat().st_size <= 8192 for name in used)


@each_provider
def test_payloads_are_kept_whole_before_they_are_read(provider: Provider, fetching: Start) -> None:
    running = fetching(provider, "ok")
    assert not running.fetch().is_empty()
    assert running.stored()
    bodies = {answer.body for route in running.server.routes for answer in route.answers}
    for path in running.stored():
        body = gzip.decompress(path.read_bytes())
        assert path.name == f"{hashlib.sha256(body).hexdigest()}.json.gz"
        assert body in bodies
        receipts = [json.loads(line) for line in path.with_name(path.name.replace(".json.gz", ".receipts.jsonl")).read_text().splitlines()]
        assert {receipt["received_at"] for receipt in receipts} == {running.instant("now").isoformat()}
        assert all(receipt["url"].startswith(running.server.url) and receipt["status"] == 200 for receipt in receipts)


TRANSIENT_FAULTS = {
    "429 with Retry-After": [Answer(429, b"slow down", {"Retry-After": "3"})],
    "500 and 503 with a page": [Answer(500, HTML), Answer(503, HTML)],
    "cut body": [Answer(200, b'{"rows": [' + b" " * 100, cut_after=40)],
    "cut JSON": [Answer(200, b'[{"a": 1}, {"a"')],
    "no body": [Answer(200, b"")],
}


@each_provider
@pytest.mark.parametrize("fault", TRANSIENT_FAULTS)
def test_a_passing_fault_costs_nothing_but_time(provider: Provider, fault: str, fetching: Start) -> None:
    undisturbed, disturbed = fetching(provider, "ok"), fetching(provider, "ok")
    expected = undisturbed.fetch()
    asked = len(undisturbed.server.asked)
    disturbed.server.first = list(TRANSIENT_FAULTS[fault])
    assert disturbed.fetch().equals(expected)
    assert len(disturbed.server.asked) == 2 * asked + len(TRANSIENT_FAULTS[fault])
    extra = sum(disturbed.timer.waits) - sum(undisturbed.timer.waits)
    assert 0 < extra <= 4
    if "429" in fault:
        assert disturbed.timer.waits[0] == 3.0


@each_provider
@pytest.mark.parametrize("fault", TRANSIENT_FAULTS)
def test_a_lasting_fault_is_a_transient_error_without_rows(provider: Provider, fault: str, fetching: Start) -> None:
    running = fetching(provider, "ok")
    running.server.first = list(TRANSIENT_FAULTS[fault]) * (ATTEMPTS + 1)
    error = running.refused(SourceUnavailableError, f"failed {ATTEMPTS} times")
    assert isinstance(error, TransientError)
    assert len(running.server.asked) == ATTEMPTS
    assert running.stored() == []


ECHOED = b"<the credential that was sent>"
TERMINAL_FAULTS = {
    "401": (Answer(401, b"Unauthenticated " + ECHOED), SourceRefusedError),
    "403 with a page": (Answer(403, HTML), SourceRefusedError),
    "418": (Answer(418, b'{"code":-1003,"msg":"banned"}'), SourceRefusedError),
    "moved": (Answer(302, b"", {"Location": "http://elsewhere.example/"}), SourceRefusedError),
    "HTML instead of JSON": (Answer(200, HTML), MalformedDataError),
    "text instead of JSON": (Answer(200, b"Your query was too short"), MalformedDataError),
    "another document": (Answer(200, b'{"unexpected": [1]}'), MalformedDataError),
    "a declared body of 100 MB": (Answer(200, b"[", {"Content-Length": str(100 * 1024**2)}), MalformedDataError),
    "an endless body": (Answer(200, b" " * 1024**2, endless=True), MalformedDataError),
}


@each_provider
@pytest.mark.parametrize("fault", TERMINAL_FAULTS)
def test_a_refusal_is_a_terminal_error_at_once(provider: Provider, fault: str, fetching: Start) -> None:
    running = fetching(provider, "ok")
    answer, kind = TERMINAL_FAULTS[fault]
    echo = provider.secret.encode() if provider.variables else b""
    running.server.first = [replace(answer, body=answer.body.replace(ECHOED, echo))]
    error = running.refused(kind)
    assert isinstance(error, TerminalError)
    assert len(running.server.asked) == 1
    assert running.timer.waits == []


@each_provider
def test_after_a_ban_the_provider_is_left_alone_until_it_ends(provider: Provider, fetching: Start) -> None:
    running = fetching(provider, "ok")
    running.server.first = [Answer(418, b"banned", {"Retry-After": "120"})]
    running.refused(SourceRefusedError, "418")
    running.refused(SourceRefusedError, "Wait 120 s")
    assert len(running.server.asked) == 1
    running.timer.seconds += 121
    assert not running.fetch().is_empty()


@each_provider
def test_a_long_wait_is_left_to_the_next_run(provider: Provider, fetching: Start) -> None:
    running = fetching(provider, "ok")
    running.server.first = [Answer(429, b"quota", {"Retry-After": "7200"})]
    running.refused(SourceUnavailableError, "come back in 7200 s")
    assert len(running.server.asked) == 1


@each_provider
def test_a_dead_server_is_a_transient_error(provider: Provider, fetching: Start) -> None:
    running = fetching(provider, "ok")
    with local_provider() as dead:
        url = dead.url
    running.server.url = url
    running.refused(SourceUnavailableError, "ConnectError")


@each_provider
def test_without_a_credential_nothing_is_asked(provider: Provider, fetching: Start) -> None:
    running = fetching(provider, "ok")
    if not provider.variables:
        assert not running.fetch(secret="").is_empty()
        return
    with pytest.raises(ConfigurationError, match=f"^({'|'.join(provider.variables)}) is not set.*FEATURESTORE_SOURCES"):
        running.fetch(secret="")
    assert running.server.asked == []


@each_provider
def test_only_a_source_that_is_switched_on_is_asked(
    provider: Provider, fetching: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running = fetching(provider, "ok")
    prefix = provider.settings("http://x", provider.secret).model_config["env_prefix"]
    monkeypatch.setenv(f"{prefix}BASE_URL", running.server.url)
    for variable in provider.variables:
        monkeypatch.setenv(variable, provider.secret)
    expected = running.fetch()
    asked = len(running.server.asked)
    window, clock = (running.instant("start"), running.instant("end")), FrozenClock(running.instant("now"))
    off = Settings(data_folder=tmp_path / "data", sources="files")
    assert sources.fetch(running.dataset, *window, settings=off, clock=clock).is_empty()
    assert len(running.server.asked) == asked
    on = Settings(data_folder=tmp_path / "data", sources=f" {provider.source.name} ,files")
    assert sources.fetch(running.dataset, *window, settings=on, clock=clock).equals(expected)
    assert list((tmp_path / "data" / "payloads" / provider.source.name).rglob("*.json.gz"))
    shown = {setting.name: setting.value for setting in provider_settings.describe()}
    assert shown[f"{prefix}BASE_URL"] == running.server.url
    assert {shown[variable] for variable in provider.variables} <= {MASK}


def test_every_source_over_http_is_under_test() -> None:
    assert {provider.source.name for provider in PROVIDERS} == {
        source.name for source in CATALOGUE.sources if source.requests_per_minute is not None
    }
