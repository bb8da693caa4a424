"""The news feed: every page or none, values as delivered, and nothing bad past the audit."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.features.raw_tables import MARKET_EVENTS
from featurestore_dagster.features.sources import NEWS
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.pipeline.audit import Audit, audit_dataset
from featurestore_dagster.sources import news
from featurestore_dagster.sources.http import HttpClient
from featurestore_dagster.sources.provider_settings import NewsSettings
from tests.local_provider import Answer, Patience, local_provider
from tests.unit.pipeline.frames import NO_ACTIONS

NOW = datetime(2018, 12, 31, 22, tzinfo=UTC)
MIDNIGHT = datetime(2018, 12, 31, tzinfo=UTC)
BEAT = datetime(2018, 12, 31, 21, 59, 30, tzinfo=UTC)
MEGABYTE = 1024 * 1024
PAYLOADS = Path(__file__).parents[2] / "payloads" / "news"


def fetched(*bodies: bytes, folder: Path, largest_bytes: int = 64 * MEGABYTE) -> pl.DataFrame:
    with local_provider() as provider:
        provider.first = [Answer(200, body) for body in bodies]
        with HttpClient(NEWS, provider.url, folder, FrozenClock(NOW), timer=Patience(), largest_bytes=largest_bytes) as client:
            return news.fetch(MARKET_EVENTS, MIDNIGHT, NOW, settings=NewsSettings(), client=client)


def audited(rows: pl.DataFrame) -> Audit:
    return audit_dataset(
        MARKET_EVENTS,
        rows,
        ["2018-12-31"],
        context=rows.clear(),
        actions=NO_ACTIONS,
        jumped=NO_ACTIONS,
        listings={},
        now=NOW,
        whole=False,
    )


def test_every_bad_row_is_delivered_as_it_is_and_refused_by_the_audit(tmp_path: Path) -> None:
    rows = fetched((PAYLOADS / "bad_rows.json").read_bytes(), folder=tmp_path)
    assert rows.filter(event_id="b-1")["score"].to_list() == [1.2]
    assert rows.filter(event_id="b-3")["score"].is_nan().all()
    assert rows.filter(event_id="b-5").select("event_timestamp", "flags").rows() == [
        (datetime(2018, 12, 31, 21, 5, tzinfo=UTC), QualityFlag.TIMESTAMP_MISMATCH.value)
    ]
    audit = audited(rows)
    assert audit.rows["event_id"].to_list() == ["g-1", "heartbeat"]
    refused = [
        (json.loads(row)["event_id"], reason) for row, reasons in audit.quarantined.select("row", "reasons").rows() for reason in reasons
    ]
    assert sorted((event, reason.partition(":")[0]) for event, reason in refused) == [
        ("b-1", "score"),
        ("b-2", "confidence"),
        ("b-3", "score"),
        ("b-4", "duplicate_key"),
        ("b-4", "duplicate_key"),
        ("b-5", "flags"),
        ("b-6", "source_type"),
        ("b-7", "rating"),
        ("b-8", "duplicate_event"),
        ("b-8", "duplicate_event"),
    ]


def test_one_id_with_other_content_on_another_page_is_refused_too(tmp_path: Path) -> None:
    event = json.loads((PAYLOADS / "page_1.json").read_text())["events"][1]
    pages = [
        {"events": [event], "next": "c2", "heartbeat": BEAT.isoformat()},
        {"events": [event | {"score": -0.4}], "next": None, "heartbeat": BEAT.isoformat()},
    ]
    audit = audited(fetched(*(json.dumps(page).encode() for page in pages), folder=tmp_path))
    assert audit.rows["event_id"].to_list() == ["heartbeat"]
    assert audit.quarantined.height == 2


@pytest.mark.parametrize(
    ("headline", "same"),
    [("Chip  maker\tRAISES outlook ", True), ("Chip maker raises outlook\n", True), ("Chip maker raises outlooks", False)],
)
def test_a_headline_is_known_by_its_words(headline: str, same: bool) -> None:
    expected = hashlib.sha256(b"chip maker raises outlook").hexdigest()
    assert (news.headline_hash(headline) == expected) is same


def test_casefolding_is_that_of_unicode_and_nothing_has_no_hash() -> None:
    assert news.headline_hash("STRASSE") == news.headline_hash("straße")
    assert news.headline_hash(None) is news.headline_hash(" \n") is None


def test_ten_megabytes_are_read_and_more_than_the_bound_is_refused_whole(tmp_path: Path) -> None:
    event = {"id": "n", "symbol": "AAPL", "published_at": "2018-12-31T21:30:00Z", "source_type": "news", "headline": "word " * 200}
    events = [event | {"id": f"n-{number}"} for number in range(10_000)]
    body = json.dumps({"events": events, "next": None, "heartbeat": BEAT.isoformat()}).encode()
    assert len(body) > 10 * MEGABYTE
    assert fetched(body, folder=tmp_path).height == 10_001
    with pytest.raises(MalformedDataError, match=f"allowed {10 * MEGABYTE}"):
        fetched(body, folder=tmp_path, largest_bytes=10 * MEGABYTE)
