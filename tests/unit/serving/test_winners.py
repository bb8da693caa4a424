"""The search for the visible version, and what is carried from one stretch of history to the next, against loops."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore_dagster.serving.point_in_time import winners as module
from featurestore_dagster.serving.point_in_time.winners import Questions, Versions, carried, winners


def oracle(versions: Versions, asked: Questions) -> list[int]:
    known = list(zip(versions.keys, versions.event_times, versions.known_at, strict=True))
    return [
        max((n for n, (k, event, at) in enumerate(known) if k == key and event <= instant and at <= knowledge), default=-1)
        for key, instant, knowledge in zip(asked.keys, asked.instants, asked.knowledge, strict=True)
    ]


def random_versions(draw: np.random.Generator, count: int, keys: int, most: int) -> Versions:
    key, event = draw.integers(0, keys, count), draw.integers(0, most, count)
    known = event + draw.integers(-2, most, count)
    order = np.lexsort((known, event, key))
    return Versions(key[order], event[order], known[order])


sizes: dict[str, Any] = {
    "seed": st.integers(0, 2**32 - 1),
    "count": st.integers(0, 80),
    "rows": st.integers(0, 30),
    "keys": st.integers(1, 5),
    "most": st.integers(1, 30),
}


@pytest.mark.parametrize("single_steps", [0, 3])
@pytest.mark.parametrize("largest_packed", [1, 37, 2**62])
@settings(deadline=None)
@given(**sizes)
def test_the_winner_is_the_last_visible_version(
    single_steps: int, largest_packed: int, seed: int, count: int, rows: int, keys: int, most: int
) -> None:
    draw = np.random.Generator(np.random.PCG64(seed))
    versions = random_versions(draw, count, keys, most)
    instants = draw.integers(-2, most + 3, rows)
    knowledge = np.where(draw.random(rows) < 0.5, instants, draw.integers(-3, 2 * most, rows))
    asked = Questions(draw.integers(0, keys, rows), instants, knowledge)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SINGLE_STEPS", single_steps)
        patch.setattr(module, "LARGEST_PACKED", largest_packed)
        assert winners(versions, asked).tolist() == oracle(versions, asked)


@settings(deadline=None)
@given(**sizes)
def test_what_is_carried_answers_every_later_row(seed: int, count: int, rows: int, keys: int, most: int) -> None:
    draw = np.random.Generator(np.random.PCG64(seed))
    versions = random_versions(draw, count, keys, most)
    oldest, least = int(draw.integers(-5, most)), int(draw.integers(-3, most))
    mask = carried(versions, oldest, least)
    kept = Versions(versions.keys[mask], versions.event_times[mask], versions.known_at[mask])
    asked = Questions(draw.integers(0, keys, rows), most + draw.integers(0, 6, rows), least + draw.integers(0, most, rows))
    for before, after in zip(winners(versions, asked), winners(kept, asked), strict=True):
        if before >= 0 and versions.event_times[before] > oldest:
            assert after >= 0
            assert np.flatnonzero(mask)[after] == before


def test_of_versions_known_in_time_one_a_key_is_carried() -> None:
    events = np.arange(1_000)
    versions = Versions(events // 500, events % 500, events % 500 + 5)
    assert np.flatnonzero(carried(versions, -1, 500)).tolist() == [495, 496, 497, 498, 499, 995, 996, 997, 998, 999]
