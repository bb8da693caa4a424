"""A server that does not answer or refuses: typed errors that say what to do, without the password."""

import subprocess
import threading
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D
from featurestore_dagster.model.time import SystemClock
from featurestore_dagster.settings import PostgresSettings, Settings
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.postgres.connection import connect, read_frame
from tests.ports import free_port

EVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)
SECRET = "correct horse battery"


def _calls(postgres: PostgresSettings) -> dict[str, object]:
    store, ledger = PostgresStore(postgres, SystemClock()), Ledger(postgres)
    return {
        "plan": lambda: store.plan(CATALOGUE),
        "raw": lambda: store.read_raw(US_EQUITY_CANDLES_1D, *EVER),
        "features": lambda: store.read_features(DAILY_OHLCV_STATS, *EVER),
        "online": lambda: store.online_changes(DAILY_OHLCV_STATS, None, EVER[1]),
        "ledger": ledger.totals,
    }
