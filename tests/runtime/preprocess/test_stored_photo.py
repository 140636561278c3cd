"""The ids of stored photos, which are file names that anything may have written."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from runtime.preprocess.stored_photo import added_at, id_ending, is_id, new_id

ENDING = id_ending(b"photo")


def test_an_id_holds_its_time() -> None:
    before = datetime.now(timezone.utc)
    id = new_id(ENDING)
    assert is_id(id) and before <= added_at(id) <= datetime.now(timezone.utc)
    assert is_id(later := new_id(ENDING, "98991231T235959999999Z_0123456789abcdef.jpg"))
    assert added_at(later).year == 9900


@pytest.mark.parametrize(
    "time",
    [
        *("20250230T000000000000Z", "20251301T000000000000Z", "00000101T000000000000Z"),
        *("20250101T240000000000Z", "20250101T006000000000Z", "20250101T000060000000Z"),
        "99991231T235959999999Z",  # no later id is possible
    ],
)
def test_a_file_with_a_time_that_does_not_exist_is_no_photo(time: str) -> None:
    assert not is_id(f"{time}{ENDING}")
