"""What Dagster repeats: a step that met a transient error. What is transient is said by `errors`."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from featurestore_dagster.errors import TransientError

MAXIMUM_RETRIES = 3


@contextmanager
def retried(retry_number: int) -> Iterator[None]:
    """Ask Dagster for the step again, later each time.

    Raises:
        dg.RetryRequested: A transient error came out of the block.
    """
    try:
        yield
    except TransientError as error:
        raise dg.RetryRequested(max_retries=MAXIMUM_RETRIES, seconds_to_wait=2 ** (retry_number + 1)) from error
