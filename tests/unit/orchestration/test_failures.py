"""Which runs of a job count as its failures."""

from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.tags import WILL_RETRY_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from featurestore_dagster.orchestration.alerting import EXTRA_RUNS, _failures_since_success

ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(InProcessCodeLocationOrigin(LoadableTargetOrigin()), "repository"), "xnys_path")
AT = datetime(2018, 12, 31, tzinfo=UTC)


def record(number: int, *, succeeded: bool = False, launched: bool = True, **tags: str) -> dg.RunRecord:
    status = dg.DagsterRunStatus.SUCCESS if succeeded else dg.DagsterRunStatus.FAILURE
    origin = ORIGIN if launched else None
    run = DagsterRun(
        job_name="xnys_path", run_id=f"{number:08}-0000-4000-8000-000000000000", status=status, tags=tags, remote_job_origin=origin
    )
    return dg.RunRecord(number, run, AT, AT)


@pytest.mark.parametrize(
    ("records", "counted"),
    [
        pytest.param([record(3), record(2), record(1, succeeded=True), record(0)], [3, 2], id="since the last success"),
        pytest.param([record(2, **{WILL_RETRY_TAG: "true"}), record(1)], [1], id="what Dagster will retry is not over"),
        pytest.param([record(1, launched=False, **{WILL_RETRY_TAG: "true"})], [1], id="what a command ran is retried by nobody"),
        *(
            pytest.param([record(3, succeeded=True, **{tag: "7"}), record(2), record(1, **{tag: "7"})], [2], id=tag)
            for tag in sorted(EXTRA_RUNS)
        ),
    ],
)
def test_failures(records: list[dg.RunRecord], counted: list[int]) -> None:
    assert [found.storage_id for found in _failures_since_success(records)] == counted
