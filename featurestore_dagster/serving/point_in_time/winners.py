"""Which version of a key's row was visible: arrays in, positions out. No frame, no calendar, no I/O.

Versions are ordered by key, event time and known-at. What could be visible at an instant is then a run of neighbours that ends at the last
version with event time <= instant, and the winner is the rightmost of them that was known: mostly the first one looked at, else found in a
tree of minima of known-at. The instant and the instant of knowledge may therefore differ in each row, at no other cost.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

Integers: TypeAlias = npt.NDArray[np.int64]

NEVER = np.iinfo(np.int64).max
LARGEST_PACKED = 2**62
"""Key number and instant share one integer below this, so that one search serves both."""

SINGLE_STEPS = 3
"""Neighbours looked at one by one before the tree is built: enough for a publication delay and a correction."""


@dataclass(frozen=True)
class Versions:
    """Versions sorted by key number, event time and known-at; times are microseconds."""

    keys: Integers
    event_times: Integers
    known_at: Integers


@dataclass(frozen=True)
class Questions:
    """Key number, instant and instant of knowledge of each row asked for, any order; times are microseconds."""

    keys: Integers
    instants: Integers
    knowledge: Integers


def winners(versions: Versions, asked: Questions) -> Integers:
    """Position of the version that each row could see, -1 where there is none.

    A version is visible when it has the row's key, event time <= instant and known-at <= knowledge; among those the greatest event time
    wins, then the greatest known-at.
    """
    found = np.full(asked.keys.size, -1, np.int64)
    if not asked.keys.size or not versions.keys.size:
        return found
    first, last = int(asked.instants.min()), int(asked.instants.max())
    span = last - first + 2
    key_count = int(max(asked.keys.max(), versions.keys.max())) + 1
    group = max(LARGEST_PACKED // span, 1)
    if group >= key_count:
        _search(versions, asked, slice(None), 0, (first, span), found)
        return found
    for low in range(0, key_count, group):
        rows = np.flatnonzero((asked.keys >= low) & (asked.keys < low + group))
        start, end = np.searchsorted(versions.keys, [low, low + group])
        part = Versions(versions.keys[start:end], versions.event_times[start:end], versions.known_at[start:end])
        if rows.size and part.keys.size:
            _search(part, asked, rows, int(start), (first, span), found)
    return found


def _search(versions: Versions, asked: Questions, rows: Integers | slice, offset: int, window: tuple[int, int], found: Integers) -> None:
    first, span = window
    keys, instants, knowledge = asked.keys[rows], asked.instants[rows], asked.knowledge[rows]
    low = int(min(versions.keys[0], keys.min()))
    packed_versions = (versions.keys - low) * span + np.clip(versions.event_times - first, 0, span - 1)
    packed_asked = (keys - low) * span + (instants - first)
    # Sorted needles walk through the versions instead of jumping: three times faster, sorting included.
    order = pl.Series(packed_asked).arg_sort().to_numpy()  # on all cores
    packed_asked = packed_asked[order]
    positions = np.searchsorted(packed_versions, packed_asked, side="right") - 1
    starts = np.searchsorted(versions.keys, np.arange(low, int(keys.max()) + 1))[keys[order] - low]
    knowledge = knowledge[order]
    visible = _rightmost_known(versions.known_at, starts, positions, knowledge)
    result = np.empty(visible.size, np.int64)
    result[order] = np.where(visible < 0, -1, visible + offset)
    found[rows] = result


def _rightmost_known(known_at: Integers, starts: Integers, positions: Integers, knowledge: Integers) -> Integers:
    """The greatest position from `starts` to `positions` whose known-at is <= knowledge; -1 where there is none."""
    result = np.where(positions >= starts, positions, -1)
    open_rows = np.flatnonzero((result >= 0) & (known_at[result] > knowledge))
    for _ in range(SINGLE_STEPS):
        if not open_rows.size:
            return result
        result[open_rows] -= 1
        candidates = result[open_rows]
        result[open_rows[candidates < starts[open_rows]]] = -1
        is_open = (candidates >= starts[open_rows]) & (known_at[candidates] > knowledge[open_rows])
        open_rows = open_rows[is_open]
    if open_rows.size:
        reached = _climb(_minima(known_at), result[open_rows], knowledge[open_rows])
        result[open_rows] = np.where(reached >= starts[open_rows], reached, -1)
    return result


def _minima(values: Integers) -> list[Integers]:
    """Minimum of each aligned block of 1, 2, 4, ... values."""
    levels = [values]
    while levels[-1].size > 1:
        level = levels[-1]
        padded = np.append(level, NEVER) if level.size % 2 else level
        levels.append(padded.reshape(-1, 2).min(axis=1))
    return levels


def _climb(levels: list[Integers], positions: Integers, limits: Integers) -> Integers:
    """The greatest position <= each of `positions` whose value is <= its limit; -1 where there is none."""
    reached = np.full(positions.size, -1, np.int64)
    height = np.full(positions.size, -1, np.int64)
    rows, blocks = np.arange(positions.size), positions
    for number, level in enumerate(levels):
        hit = level[blocks] <= limits[rows]
        reached[rows[hit]] = blocks[hit]
        height[rows[hit]] = number
        # A right block's parent holds only it and its left neighbour; a left block's parent would look to the right.
        blocks = blocks[~hit]
        rows = rows[~hit]
        blocks = np.where(blocks % 2 == 1, blocks // 2, blocks // 2 - 1)
        inside = blocks >= 0
        rows, blocks = rows[inside], blocks[inside]
    for number in range(len(levels) - 2, -1, -1):
        rows = np.flatnonzero(height > number)
        right = np.minimum(reached[rows] * 2 + 1, levels[number].size - 1)
        reached[rows] = np.where(levels[number][right] <= limits[rows], right, reached[rows] * 2)
    return reached


def carried(versions: Versions, oldest: int, least_knowledge: int) -> npt.NDArray[np.bool_]:
    """Which versions can still win for a row whose instant is not before any of their event times, with knowledge >= `least_knowledge`.

    Args:
        versions: All that came so far and were not dropped before.
        oldest: Event times <= this are beyond every TTL.
        least_knowledge: The earliest instant of knowledge of any later row; every later row prefers, among the versions known by then, the
            last of its key.

    Returns:
        A mask. A version is dropped when it is too old, or a later one of its key was known no later than it or `least_knowledge`.
    """
    count = versions.keys.size
    if not count:
        return np.zeros(0, np.bool_)
    known = np.maximum(versions.known_at, least_knowledge)
    # The minimum runs from the right; where the key changes it starts anew, which a rank per key makes one running minimum.
    order = np.argsort(known, kind="stable")
    ranks = np.empty(count, np.int64)
    ranks[order] = np.cumsum(np.append(0, np.diff(known[order]) > 0))
    packed = versions.keys * (count + 1) + ranks
    later = np.minimum.accumulate(np.append(packed[1:], NEVER)[::-1])[::-1]
    return (packed < later) & (versions.event_times > oldest)
