"""budget: which photos fit together, and what threads hold at once."""

import itertools
import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.budget import CLEAN, CLEAN_BYTES, FILES, Budget, Measured, groups, smallest

PHOTOS = st.lists(
    st.builds(Measured, st.integers(4096, 50_000_000), st.integers(1, 200_000_000), st.booleans()), max_size=30
)


@given(PHOTOS, st.integers(10**8, 2 * 10**10))
def test_groups_fit_and_keep_the_order(photos: list[Measured], free: int) -> None:
    found, refused = groups(photos, free)
    assert [p for p in photos if p not in refused] == [p for group in found for p in group]
    for group in found:
        held = sum(p.held for p in group)
        assert group and held + max(p.working for p in group) <= free
    for photo in refused:
        assert photo.held + photo.working > free
    for group, after in itertools.pairwise(found):  # as many as fit
        both = [*group, after[0]]
        assert sum(p.held for p in both) + max(p.working for p in both) > free


def test_the_default_holds_what_its_text_says() -> None:
    free = 16 * 2**30 - 16 * 2**30 // FILES
    phone, large = Measured(4032 * 3024, 5_000_000), Measured(50_000_000, 25_000_000)
    assert len(groups([phone] * 64, free - 16 * CLEAN_BYTES * phone.pixels)[0]) == 1
    found, refused = groups([large] * 16, free - 16 * CLEAN_BYTES * large.pixels)
    assert (len(found[0]), refused) == (8, [])
    assert len(smallest([large] * 16, 16 * 2**30)) == 16


@given(PHOTOS, st.integers(10**8, 2 * 10**10))
def test_the_smallest_clean_photos_stay_in_their_order(photos: list[Measured], total: int) -> None:
    kept = smallest(photos, total)
    assert CLEAN_BYTES * sum(p.pixels for p in kept) <= total // CLEAN
    assert [p for p in photos if p in kept] == kept
    rest = [p for p in photos if p not in kept]
    assert not rest or not kept or max(p.pixels for p in kept) <= min(p.pixels for p in rest)


def test_threads_share_a_budget_and_what_is_too_large_goes_alone() -> None:
    budget, now, most = Budget(100), 0, 0
    lock = threading.Lock()
    budget.hold(40)

    def work(size: int) -> None:
        nonlocal now, most
        for _ in range(20):
            with budget.of(size):
                with lock:
                    now += size
                    most = max(most, now) if size < 500 else most
                    assert size < 500 or now == size
                time.sleep(0)
                with lock:
                    now -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in (30, 30, 20, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (now, most <= 60) == (0, True)


def test_files_are_kept_up_to_their_part() -> None:
    budget = Budget(80)
    assert [budget.keep(size) for size in (6, 5, 4)] == [True, False, True]
    budget.drop(6)
    assert budget.keep(5)
