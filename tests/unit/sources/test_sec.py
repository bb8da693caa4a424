"""SEC: who asks, and what a document says whatever its order; recorded documents are in tests/contract/test_providers.py."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.sources import sec
from featurestore_dagster.sources.provider_settings import SecSettings

PAYLOADS = Path(__file__).parents[2] / "payloads" / "sec"


@pytest.mark.parametrize("agent", ["Jane Doe", "jane@example.org", "Jane Doe jane@example", "Jane Doe\njane@example.org"])
def test_an_agent_without_name_and_address_is_refused(agent: str) -> None:
    with pytest.raises(ConfigurationError, match=r"SEC_USER_AGENT=\*+: .*; allowed: a name and an e-mail address"):
        SecSettings(user_agent=SecretStr(agent))


def test_the_order_of_tags_units_and_facts_changes_nothing() -> None:
    document = json.loads((PAYLOADS / "companyfacts.json").read_text())
    turned = {
        "facts": {
            taxonomy: {
                tag: {"units": {unit: facts[::-1] for unit, facts in reversed(found["units"].items())}}
                for tag, found in reversed(tags.items())
            }
            for taxonomy, tags in reversed(document["facts"].items())
        }
    }
    rows, again = (sec.parse(json.dumps(one).encode(), {}, "AAPL") for one in (document, turned))
    assert rows.height == 13
    assert rows.sort(rows.columns).equals(again.sort(rows.columns))


@pytest.mark.parametrize(
    ("accepted", "instant"),
    [
        pytest.param("2019-01-29T21:36:55.000Z", datetime(2019, 1, 30, 2, 36, 55, tzinfo=UTC), id="winter"),
        pytest.param("2019-07-30T16:30:05.000Z", datetime(2019, 7, 30, 20, 30, 5, tzinfo=UTC), id="summer"),
        pytest.param("", datetime(2019, 8, 1, 3, 59, 59, tzinfo=UTC), id="without"),
    ],
)
def test_an_acceptance_is_never_read_too_early(accepted: str, instant: datetime) -> None:
    """Some filers' Z is New York's wall clock: read as UTC, their figures would be known four hours before they were."""
    filing = {"accessionNumber": ["a"], "filingDate": ["2019-07-31"], "acceptanceDateTime": [accepted]}
    assert sec.parse_filings(json.dumps(filing).encode(), "AAPL") == {"a": instant}
