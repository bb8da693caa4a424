"""The committed sessions of exchanges: equal to exchange_calendars, complete, and free of pandas."""

import subprocess
import sys
from pathlib import Path

import exchange_calendars
import pytest

from featurestore_dagster.calendars import calendar, generated_files
from featurestore_dagster.calendars.exchange_hours import FIRST_DAY, LAST_DAY, WRITTEN, exchange_hours, parse, recorded, render
from featurestore_dagster.cli.store import outdated
from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.features import CATALOGUE

XNYS = "featurestore_dagster/calendars/exchange_sessions/XNYS.json"


def test_every_session_of_six_decades_is_that_of_exchange_calendars() -> None:
    known = exchange_calendars.get_calendar("XNYS", start=str(FIRST_DAY), end=str(LAST_DAY))
    expected = [
        (session.date(), opens.to_pydatetime(), closes.to_pydatetime())
        for session, opens, closes in zip(known.sessions, known.opens, known.closes, strict=True)
    ]
    ours = calendar("XNYS").sessions(FIRST_DAY, LAST_DAY)
    assert ours.height == 15_092
    assert ours.select("session", "opens", "closes").rows() == expected
    written = exchange_hours("XNYS")
    assert (written.time_zone, written.first_day, written.last_day) == (str(known.tz), FIRST_DAY, LAST_DAY)
    assert written.table["break_start"].null_count() == written.table["break_end"].null_count() == ours.height


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("XTKS", id="lunch break, longer hours since 2024"),
        pytest.param("XHKG", id="half days without the break"),
        pytest.param("BVMF", id="hours that follow another country's clocks"),
        pytest.param("XSAU", id="shorter record, Sunday to Thursday"),
    ],
)
def test_what_is_written_is_read_back(code: str) -> None:
    known = recorded(code)
    again = parse(render(known))
    assert again.table.equals(known.table)
    assert (again.time_zone, again.first_day, again.last_day) == (known.time_zone, known.first_day, known.last_day)


def test_sessions_that_local_hours_cannot_say_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"America/Chicago .* cannot be written as local hours; allowed: .* within one local day"):
        render(recorded("CMES"))


def test_the_files_of_the_catalogue_are_committed_and_a_changed_day_is_noticed(tmp_path: Path) -> None:
    expected = generated_files(CATALOGUE)
    assert XNYS in expected
    assert {path.name for path in WRITTEN.iterdir()} == {Path(name).name for name in expected}
    assert (WRITTEN / "XNYS.json").read_text() == expected[XNYS]
    copy = tmp_path / XNYS
    copy.parent.mkdir(parents=True)
    copy.write_text(expected[XNYS])
    assert XNYS not in outdated(tmp_path)
    copy.write_text(expected[XNYS].replace("11-22 12-05 12-25", "11-22 12-25"))  # 5 December 2018 was a day of mourning
    assert XNYS in outdated(tmp_path)


def test_new_york_is_ready_in_a_tenth_of_a_second_without_pandas() -> None:
    code = """
import sys, time
from featurestore_dagster.calendars import calendar
calendar("FX"), calendar("24/7")
start = time.process_time()
market = calendar("XNYS")
seconds = time.process_time() - start
print({"pandas", "exchange_calendars"} & set(sys.modules), seconds)
sys.exit(bool({"pandas", "exchange_calendars"} & set(sys.modules)) or seconds > 0.1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
