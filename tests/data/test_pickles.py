import pickle
import struct
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from cifar_files import images, python2_pickle

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


def test_a_foreign_name_is_refused_even_where_nothing_uses_it():
    hostile = GOOD[:-2] + b"U\x01xcos\nsystem\nu."
    with pytest.raises(DataError, match="the name b'os system' has no place there"):
        read_batch(hostile, b"labels")


@pytest.mark.parametrize(
    "hostile",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"cnumpy\ndtype\ncnumpy\ndtype\nb.",
        b"cnumpy.core.multiarray\n_reconstruct\n\x81.",
        b"\x8c\x02os\x8c\x06system\x93.",
        b"\x82\x01.",
        b"Psome-id\n.",
        b"}}}.",
        b"}(U\x01ae.",
        b"}(U\x01au.",
        b"}(]U\x01au.",
        b"](K\x01u.",
        b"e.",
        b"(" * 100000,
        b"}(K\x01" + b"\x85" * 300000 + b"K\x01u.",
        b"}(]K\x01u.",
        b"\x85.",
        b"K\x01b.",
        b"N.",
        b".",
        b"}" + b"u." * 10,
    ],
)
def test_other_pickles(hostile):
    with pytest.raises(DataError, match="not the pickle of a CIFAR batch"):
        read_batch(hostile, b"labels")


@pytest.mark.parametrize(
    "claim",
    [
        b"]r\xff\xff\xff\x7f",  # a memo of two thousand million entries
        b"T" + struct.pack("<i", 2**31 - 1) + b"x",
        b"\x8e" + struct.pack("<Q", 2**62) + b"x",
        b"\x96" + struct.pack("<Q", 2**62) + b"x",
        b"\x95" + struct.pack("<Q", 2**62) + b"x",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x",
    ],
)
def test_a_claimed_size_allocates_nothing(claim):
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_batch(b"\x80\x02" + claim, b"labels")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (b"U\x02u1", b"U\x02i1"),
        (b"U\x02u1", b"U\x02f8"),
        (b"K\x01M\x04\x00M\x00\x0c", b"K\x01M\x05\x00M\x00\x0c"),
        (b"K\x01M\x04\x00M\x00\x0c", b"K\x01M\x00\x00M\x00\x0c"),
        (b"tb\x89T", b"tbNT"),
    ],
)
def test_arrays_of_another_kind(was, becomes):
    assert GOOD.count(was) == 1
    with pytest.raises(DataError, match="no 2-D array of uint8"):
        read_batch(GOOD.replace(was, becomes), b"labels")


def test_labels_of_another_kind():
    with pytest.raises(DataError, match="no list of integers"):
        read_batch(GOOD, b"filenames")


def test_mutated_pickles_give_an_error_or_well_formed_arrays():
    rng = np.random.default_rng(0)
    pixels_at = GOOD.index(PIXELS.tobytes())
    structure = [*range(pixels_at), *range(pixels_at + PIXELS.size, len(GOOD))]
    errors = 0
    for _ in range(4000):
        mutant = bytearray(GOOD)
        for position in rng.choice(structure, rng.integers(1, 4)):
            mutant[position] = rng.integers(256)
        if rng.integers(5) == 0:
            del mutant[rng.integers(len(mutant)) :]
        try:
            pixels, labels = read_batch(bytes(mutant), b"labels")
        except DataError:
            errors += 1
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 2
            assert labels.dtype == np.int64
            assert labels.ndim == 1
    assert 2000 < errors < 4000
