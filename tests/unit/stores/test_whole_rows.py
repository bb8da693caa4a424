"""An entity's rows at once: the same as view by view, whichever views and features are wanted, or nothing at all."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.stores.redis import layout
from featurestore_dagster.stores.redis.packed import PackedView
from featurestore_dagster.stores.redis.whole import WholeRows

VIEWS = tuple(CATALOGUE.view(name) for name in ("feature_vectors", "momentum_features", "daily_ohlcv_stats"))
PACKED = [PackedView(view) for view in VIEWS]
NAMES = st.tuples(*(st.lists(st.sampled_from(view.feature_names), unique=True, min_size=1) for view in VIEWS))
ARRIVALS = st.permutations(range(len(VIEWS)))
HEADS = st.tuples(*(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)) for _ in VIEWS))
NULLS = st.tuples(*(st.sets(st.sampled_from(view.feature_names)) for view in VIEWS))


def packed(view: FeatureView, head: tuple[int, int, int], nulls: set[str] | frozenset[str] = frozenset()) -> tuple[bytes, bytes]:
    """A row of a view as it lies in Redis, and the `_ts` field beside it."""
    event, known, flags = head
    own = PackedView(view)
    values = {name: None if name in nulls else number for number, name in enumerate(view.feature_names, start=event)}
    row = dict.fromkeys(view.join_keys, "A") | values | {"flags": flags, "feature_set_version": 1, "stream": view.streams[0].name}
    times = pl.Series([event, known], dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    schema = feature_schema(view)
    frame = pl.DataFrame([row | {"event_timestamp": times[0], "created_timestamp": times[1]}], schema=schema)
    return own.pack(frame)[0], layout.encode_timestamp(event)


@given(NAMES, ARRIVALS, st.lists(st.tuples(HEADS, NULLS), min_size=1, max_size=3))
def test_all_at_once_is_the_same_as_view_by_view(
    names: Sequence[list[str]], arrival: list[int], entities: list[tuple[object, object]]
) -> None:
    whole = WholeRows(PACKED, names, arrival)
    readers = [view.reader(own) for view, own in zip(PACKED, names, strict=True)]
    for heads, nulls in entities * 2:  # the second time, heads are known
        stored = [packed(*of_view) for of_view in zip(VIEWS, heads, nulls, strict=True)]  # type: ignore[call-overload]
        row = whole.read([stored[position][0] for position in arrival], [stored[position][1] for position in arrival])
        assert row is not None
        expected = [read(*own) for read, own in zip(readers, stored, strict=True)]
        assert list(row) == expected
        assert [type(value) for value in row.values] == [type(value) for own in expected if own for value in own.values]
        assert row.heads.newest_microseconds == max(time for head in heads for time in head[:2])  # type: ignore[attr-defined]


def test_rows_that_are_not_all_there_packed_and_the_newest_are_left_to_the_views() -> None:
    names = [view.feature_names for view in VIEWS]
    whole = WholeRows(PACKED, names, (0, 1, 2))
    rows, times = map(list, zip(*(packed(view, (1, 2, 3)) for view in VIEWS), strict=True))
    narrower = replace(VIEWS[1], features=VIEWS[1].features[1:])
    retyped = replace(VIEWS[1], features=tuple(reversed(VIEWS[1].features)))
    for _ in range(2):  # the second time, heads are known
        assert whole.read(rows, times) is not None
        assert whole.read([rows[0], None, rows[2]], times) is None
        assert whole.read(rows, [times[0], None, times[2]]) is None
        assert whole.read(rows, [times[0], layout.encode_timestamp(2), times[2]]) is None
        for other in (narrower, retyped):
            assert whole.read([rows[0], packed(other, (1, 2, 3))[0], rows[2]], times) is None
        assert whole.read([rows[1], rows[0], rows[2]], times) is None


def test_entities_of_the_same_bars_share_what_is_said_of_them() -> None:
    whole = WholeRows(PACKED, [view.feature_names for view in VIEWS], (0, 1, 2))

    def read(*heads: tuple[int, int, int]) -> object:
        rows, times = map(list, zip(*map(packed, VIEWS, heads), strict=True))
        row = whole.read(rows, times)
        assert row is not None
        return row.heads

    first = read((1, 2, 3), (1, 2, 3), (1, 2, 3))
    assert read((1, 2, 3), (1, 2, 3), (1, 2, 3)) is first
    assert read((1, 2, 3), (1, 2, 3), (1, 2, 2)) is not first


def test_a_whole_row_is_a_sequence_of_the_views_rows() -> None:
    whole = WholeRows(PACKED, [view.feature_names for view in VIEWS], (0, 1, 2))
    rows, times = map(list, zip(*(packed(view, (1, 2, 3)) for view in VIEWS), strict=True))
    row = whole.read(rows, times)
    assert row is not None
    assert len(row) == 3
    assert row[-1] == tuple(row)[2] == row[1:][1]
    assert row == whole.read(rows, times)
    with pytest.raises(IndexError):
        row[3]
