import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from tests.support.cifar_files import images, python2_pickle

from dctps.data import DataError
from dctps.data.pickles import read_batch

PIXELS, LABELS = images(0, 4, 10)
GOOD = python2_pickle(PIXELS, labels=LABELS, filenames=[b"a.png", b"b.png", b"\xe9.png", b"d.png"])


def test_agrees_with_the_standard_library():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's old module names
        batch = pickle.loads(GOOD, encoding="bytes")
    pixels, labels = read_batch(GOOD, b"labels")
    assert np.array_equal(pixels, batch[b"data"])
    assert pixels.dtype == np.uint8
    assert labels.tolist() == batch[b"labels"]


class Touch:
    """Pickled as a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_that_a_file_names_is_called(protocol, tmp_path):
    hostile = pickle.dumps({"data": Touch(tmp_path / "ran"), "labels": [1]}, protocol)
    with pytest.raises(DataError, match="has no place there"):
        read_batch(hostile, b"labels")
    assert not (tmp_path / "ran").exists()
    pickle.loads(hostile)
    assert (tmp_path / "ran").exists()  # the file was a real danger


@pytest.mark.parametrize(
    "hostile",
    [
        GOOD[:-2] + b"U\x01xcos\nsystem\nu.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x8c\x02os\x8c\x06system\x93.",
        b"\x8c\x05numpy\x8c\x04load\x93.",
        b"cnumpy\nload\n.",
    ],
)
def test_a_foreign_name_is_refused_even_where_nothing_uses_it(hostile):
    with pytest.raises(DataError, match="has no place there"):
        read_batch(hostile, b"labels")


@pytest.mark.parametrize("other", [b"", b"N.", b".", b"e.", b"\x82\x01.", b"Psome-id\n.", b"}.", GOOD[:-9]])
def test_other_pickles(other):
    with pytest.raises(DataError, match="not the pickle of a CIFAR batch"):
        read_batch(other, b"labels")
