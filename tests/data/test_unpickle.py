"""CIFAR-10's pickles: what Python 3 writes is read, damaged bytes are refused."""

from __future__ import annotations

import contextlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from whycam.data.unpickle import unpickle_batch
from whycam.errors import WhycamError

PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)
BATCH = {
    "labels": [0, 9, 3, 3],
    "data": PIXELS,
    "filenames": [b"a.png", b"\xff\x00", b"a.png", b"c"],
    "batch_label": "b",
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_that_python_3_wrote(protocol, order):
    batch = {**BATCH, "data": np.asarray(PIXELS, order=order)}
    found = unpickle_batch(pickle.dumps(batch, protocol), "test_batch")
    assert np.array_equal(found.pop("data"), PIXELS)
    assert found == {"labels": BATCH["labels"], "filenames": BATCH["filenames"], "batch_label": "b"}


def test_ten_thousand_names_in_the_longest_form():
    names = [b"%05d.png" % number for number in range(10_000)]
    assert unpickle_batch(pickle.dumps({b"filenames": names}, 2), "test_batch") == {"filenames": names}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_pickles_never_raise_anything_else(data):
    content = bytearray(pickle.dumps(BATCH, data.draw(st.sampled_from([2, 3, 4]))))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, 2 * len(content))) :]
    with contextlib.suppress(WhycamError):  # any other exception fails the test
        assert isinstance(unpickle_batch(bytes(content), "test_batch"), dict)


def test_a_name_with_control_characters_stays_one_line():
    with pytest.raises(WhycamError, match=r"it asks for 'os\.\\nsystem'"):
        unpickle_batch(b"\x80\x04\x8c\x02os\x8c\x07\nsystem\x93.", "test_batch")
