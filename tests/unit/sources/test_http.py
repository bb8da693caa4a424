"""The providers' client against a real local server: pace, waiting, what is kept, and what nobody may read."""

import gzip
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from pydantic import SecretStr

from featurestore_dagster.errors import MalformedDataError, SourceRefusedError, SourceUnavailableError
from featurestore_dagster.features.raw_tables import CRYPTO_CANDLES
from featurestore_dagster.features.sources import BINANCE
from featurestore_dagster.model.source import Source
from featurestore_dagster.model.time import FrozenClock, Timeframe
from featurestore_dagster.sources import binance
from featurestore_dagster.sources.http import HttpClient
from featurestore_dagster.sources.provider_settings import BinanceSettings
from tests.local_provider import Answer, Asked, LocalProvider, Patience, Route, local_provider

NOW = datetime(2026, 1, 15, 10, 6, 30, 250_000, tzinfo=UTC)
SECRET = SecretStr("tok/en+with odd=characters")
PROVIDER = Source("provider", "under test", datasets=(), requests_per_minute=60)


@pytest.fixture
def server() -> Iterator[LocalProvider]:
    with local_provider() as running:
        running.routes = [Route("/rows", {}, [Answer(200, b"[]")])]
        yield running


@pytest.fixture
def timer() -> Patience:
    return Patience()


@pytest.fixture
def client(server: LocalProvider, timer: Patience, tmp_path: Path) -> Iterator[HttpClient]:
    with HttpClient(PROVIDER, server.url, tmp_path, FrozenClock(NOW), timer=timer) as running:
        yield running


def receipts(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in folder.rglob("*.receipts.jsonl") for line in path.read_text().splitlines()]


def test_clients_of_one_provider_share_its_pace(client: HttpClient, server: LocalProvider, timer: Patience, tmp_path: Path) -> None:
    with HttpClient(PROVIDER, server.url, tmp_path, FrozenClock(NOW), timer=timer) as other:
        for asking in (client, other, client):
            asking.get("/rows")
        assert timer.waits == [1.0, 1.0]
        timer.seconds += 60
        other.get("/rows")
        other.get("/rows")
    assert timer.waits == [1.0, 1.0, 1.0], "an idle minute saves nothing up"


def test_the_same_body_is_kept_once_with_each_arrival(client: HttpClient, server: LocalProvider, tmp_path: Path) -> None:
    client.get("/rows", {"page": 1})
    client.get("/rows", {"page": 2, "key": SECRET})
    (kept,) = tmp_path.rglob("*.gz")
    assert gzip.decompress(kept.read_bytes()) == b"[]"
    assert kept.parent == tmp_path / "provider" / "2026-01-15"
    assert [receipt["url"] for receipt in receipts(tmp_path)] == [f"{server.url}/rows?page=1", f"{server.url}/rows?page=2&key=********"]
    assert [path.name for path in tmp_path.rglob("*.part")] == []


def test_secrets_reach_the_wire_and_nothing_else(
    client: HttpClient, server: LocalProvider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")
    client.get("/rows", {"key": SECRET}, {"X-Key": SECRET})
    assert server.asked[0].query["key"] == SECRET.get_secret_value()
    assert server.asked[0].headers["X-Key"] == SECRET.get_secret_value()
    echo = b"no such key: tok/en+with odd=characters, tok%2Fen%2Bwith%20odd%3Dcharacters, tok%2Fen%2Bwith+odd%3Dcharacters"
    server.first = [Answer(403, echo)]
    with pytest.raises(SourceRefusedError) as caught:
        client.get("/rows", {"key": SECRET}, {"X-Key": SECRET})
    assert caught.value.answer == "no such key: ********, ********, ********"
    told = f"{caught.value}{caught.value.__context__}{caplog.text}{receipts(tmp_path)}"
    assert "tok/en" not in told
    assert "tok%2Fen" not in told


def test_retry_after_may_be_a_date_of_the_servers_clock(client: HttpClient, server: LocalProvider, timer: Patience) -> None:
    dates = {"Date": "Thu, 15 Jan 2026 10:00:00 GMT", "Retry-After": "Thu, 15 Jan 2026 10:00:07 GMT"}
    server.first = [Answer(503, b"", dates), Answer(503, b"", {"Retry-After": "soon"}), Answer(503, b"", {"Retry-After": "0"})]
    client.get("/rows")
    assert timer.waits[0] == 7.0
    assert 0 <= timer.waits[1] <= 2.0, "what cannot be read is no wish: back-off"


def test_back_off_doubles_with_jitter(client: HttpClient, server: LocalProvider, timer: Patience) -> None:
    waits = []
    for _ in range(20):
        server.first = [Answer(502, b"bad gateway")] * 6
        timer.waits.clear()
        with pytest.raises(SourceUnavailableError, match="failed 6 times, at last with status 502"):
            client.get("/rows")
        timer.seconds += 60
        waits.append([wait for wait in timer.waits if wait != 1.0])
    longest = [max(wait) for wait in waits]
    assert max(longest) <= 16
    assert max(longest) > 4
    assert len(set(longest)) > 15


def test_the_earlier_clock_decides_what_had_ended(client: HttpClient, server: LocalProvider) -> None:
    answers = [
        Answer(200, b"[]", {"Date": text}) for text in ("Thu, 15 Jan 2026 10:06:29 GMT", "Thu, 15 Jan 2026 10:06:31 GMT", "whenever")
    ]
    server.routes = [Route("/rows", {}, answers)]
    assert [client.get("/rows").asked_at for _ in answers] == [NOW.replace(second=29, microsecond=0), NOW, NOW]


def test_a_body_is_read_up_to_its_limit(server: LocalProvider, timer: Patience, tmp_path: Path) -> None:
    bomb = gzip.compress(b"[" + b" " * 100_000 + b"]")
    assert len(bomb) < 1000
    with HttpClient(PROVIDER, server.url, tmp_path, FrozenClock(NOW), timer=timer, largest_bytes=1000) as client:
        for answer in (Answer(200, b"[" + b" " * 999 + b"]"), Answer(200, bomb, {"Content-Encoding": "gzip"})):
            server.first = [answer]
            with pytest.raises(MalformedDataError, match="allowed 1000"):
                client.get("/rows")
        server.first = [Answer(200, b"[" + b" " * 998 + b"]")]
        assert len(client.get("/rows").body) == 1000
    assert len(list(tmp_path.rglob("*.gz"))) == 1


def klines(asked: Asked) -> Answer:
    """An exchange with a bar for each minute since 2020, which answers as Binance does."""
    first, last = int(asked.query["startTime"]), int(asked.query["endTime"])
    opens = range(-(-first // 60_000) * 60_000, last + 1, 60_000)[: int(asked.query["limit"])]
    return Answer(200, json.dumps([[at, "2", "3", "1", "2", "5", at + 59_999, "10", 7, "1", "2", "0"] for at in opens]).encode())


@pytest.mark.parametrize("minutes", [999, 1000, 1003, 2000])
def test_pages_of_a_thousand_bars_make_a_whole(minutes: int, server: LocalProvider, timer: Patience, tmp_path: Path) -> None:
    server.respond = klines
    end = NOW.replace(second=0, microsecond=0) - timedelta(days=1)
    start, dataset = end - timedelta(minutes=minutes), CRYPTO_CANDLES[Timeframe.ONE_MINUTE]
    with HttpClient(BINANCE, server.url, tmp_path, FrozenClock(NOW), timer=timer) as client:
        rows = binance.fetch(dataset, start, end, settings=BinanceSettings(base_url=server.url), client=client)
    expected = pl.datetime_range(start + timedelta(minutes=1), end, "1m", time_unit="us", eager=True)
    for symbol in ("BTCUSDT", "ETHUSDT"):
        assert rows.filter(symbol=symbol)["event_timestamp"].to_list() == expected.to_list()
    assert len(server.asked) == 2 * (-(-minutes // 1000) if minutes % 1000 else minutes // 1000)


def test_a_full_page_from_before_the_range_does_not_turn_in_circles(server: LocalProvider, timer: Patience, tmp_path: Path) -> None:
    old = Asked("/api/v3/klines", {"startTime": "1577836800000", "endTime": "1609459200000", "limit": "1000"}, {})
    server.respond = lambda _: klines(old)
    settings, dataset = BinanceSettings(base_url=server.url), CRYPTO_CANDLES[Timeframe.ONE_MINUTE]
    with (
        HttpClient(BINANCE, server.url, tmp_path, FrozenClock(NOW), timer=timer) as client,
        pytest.raises(MalformedDataError, match="before"),
    ):
        binance.fetch(dataset, NOW - timedelta(hours=2), NOW, settings=settings, client=client)
    assert len(server.asked) == 1
