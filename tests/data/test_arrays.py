import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.image_files import pixels

from dctps.data import DataError, from_arrays, load_dataset

LABELS = np.arange(10) % 3


@pytest.mark.parametrize("shape", [(10, 6, 6), (10, 1, 6, 6), (10, 6, 6, 1)])
def test_the_layouts_of_grey_images(shape):
    found = from_arrays((pixels(0, *shape), LABELS), (pixels(1, *shape), LABELS))
    assert np.array_equal(found.train.images.numpy(), pixels(0, 10, 1, 6, 6))
    assert found.test.images.shape == (10, 1, 6, 6)


@pytest.mark.parametrize("kind", ["array", "tensor", "list", "grad"])
def test_what_is_like_an_array(kind):
    images = pixels(0, 10, 6, 7, 3)
    labels = {"array": LABELS.astype(np.uint8), "list": LABELS.tolist()}.get(kind, torch.from_numpy(LABELS))
    given_images = images if kind in ("array", "list") else torch.from_numpy(images)
    found = from_arrays((given_images, labels), (images, LABELS), name="mine", flip=True)
    assert np.array_equal(found.train.images.permute(0, 2, 3, 1).numpy(), images)
    assert found.train.labels.tolist() == LABELS.tolist() and found.train.labels.dtype == torch.int64
    assert (found.name, found.flip, found.classes) == ("mine", True, 3)
    assert np.allclose(found.std, images.std((0, 1, 2)) / 255)


def test_later_changes_of_the_arrays_do_not_reach_it():
    images = pixels(0, 10, 3, 6, 6)
    found = from_arrays((images, LABELS))
    before = found.train.sha256
    images[:] = 0
    assert from_arrays((pixels(0, 10, 3, 6, 6), LABELS)).train.sha256 == before != found.test.sha256
    assert found.train.images.any()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 6, 6)), [0, 1, 0, 1], "float64, and uint8 is wanted: scale them"),
        (pixels(0, 4, 6), [0, 1, 0, 1], r"shape \(4, 6\)"),
        (pixels(0, 4, 6, 6, 6), [0, 1, 0, 1], r"shape \(4, 6, 6, 6\)"),
        (pixels(0, 4, 3, 6, 3), [0, 1, 0, 1], r"shape \(4, 3, 6, 3\)"),
        (pixels(0, 4, 0, 6), [0, 1, 0, 1], r"shape \(4, 0, 6\)"),
        (pixels(0, 0, 6, 6), np.zeros(0, int), "0 images and 0 labels"),
        (pixels(0, 4, 6, 6), [0, 1, 0], "4 images and 3 labels"),
        (pixels(0, 4, 6, 6), [0.0, 1.0, 0.0, 1.0], "labels of the training part are float64"),
        (pixels(0, 4, 6, 6), ["a", "b", "a", "b"], "give each image an integer"),
        (pixels(0, 4, 6, 6), np.eye(4, dtype=int), r"int64 of shape \(4, 4\)"),
        (pixels(0, 4, 6, 6), [0, -1, 0, 1], "run from -1 to 1"),
        (pixels(0, 4, 6, 6), [0, 2**40, 0, 1], "run from 0 to 1099511627776"),
        (pixels(0, 4, 6, 6), [0, 3, 3, 0], "no image of class 1"),
        (pixels(0, 4, 6, 6), [0, 0, 0, 0], "only the class 0"),
        (pixels(0, 4, 6, 6), [0, 0, 0, 1], "class 1 has a single image"),
        ([[1, 2], [3]], [0, 1], "the images of the training part are no array"),
    ],
)
def test_what_is_wrong_is_named(images, labels, message):
    with pytest.raises(DataError, match=message):
        from_arrays((images, labels))


def test_parts_that_do_not_fit_each_other():
    train = (pixels(0, 10, 6, 6), LABELS)
    with pytest.raises(DataError, match=r"training images are \(1, 6, 6\), test images \(1, 7, 7\)"):
        from_arrays(train, (pixels(0, 10, 7, 7), LABELS))
    with pytest.raises(DataError, match="test labels run from 0 to 3"):
        from_arrays(train, (pixels(0, 4, 6, 6), [0, 1, 2, 3]))
    with pytest.raises(DataError, match="the labels of the test part"):
        from_arrays(train, (pixels(0, 4, 6, 6), [0.5] * 4))
    with pytest.raises(DataError, match="2 class names for 3 classes"):
        from_arrays(train, train, class_names=("a", "b"))


ARRAYS = {"images": pixels(0, 10, 6, 6), "labels": LABELS}
TEST = {"test_images": pixels(1, 4, 6, 6), "test_labels": LABELS[:4]}


def test_npz_and_npy_files(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS, **TEST)
    for name, array in (ARRAYS | TEST).items():
        np.save(tmp_path / f"{name}.npy", array)
    one, other = load_dataset("arrays", tmp_path / "a.npz"), load_dataset("arrays", tmp_path)
    assert one.train.sha256 == other.train.sha256 and one.test.sha256 == other.test.sha256
    assert np.array_equal(one.test.images[:, 0].numpy(), TEST["test_images"])


def test_without_test_arrays_it_is_split_by_the_data_seed(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    first, other = (load_dataset("arrays", tmp_path / "a.npz", data_seed=seed) for seed in (0, 5))
    assert len(first.test) == 3 and len(first.train) == 7
    assert first.test.sha256 != other.test.sha256


def test_resized(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS, **TEST)
    found = load_dataset("arrays", tmp_path / "a.npz", image_size=12)
    assert found.train.images.shape == (10, 1, 12, 12) and found.test.images.shape == (4, 1, 12, 12)
    assert np.allclose(found.mean, found.train.images.double().mean() / 255)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": LABELS}, r"a\.npz holds nothing, where images and labels"),
        ({"images": ARRAYS["images"]}, "holds images, where"),
        (ARRAYS | {"test_images": ARRAYS["images"]}, "holds images, labels, test_images, where"),
        ({"images": ARRAYS["images"], "labels": LABELS[:3]}, "the training part has 10 images and 3"),
        ({"images": np.array([{}], object), "labels": LABELS}, r"cannot read .*a\.npz"),
    ],
)  # fmt: skip
def test_files_that_hold_something_else(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_dataset("arrays", tmp_path / "a.npz")


def test_missing_files(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"there is no .*b\.npz: point --data-dir at an \.npz file"):
        load_dataset("arrays", tmp_path / "b.npz")
    with pytest.raises(DataError, match="holds nothing"):
        load_dataset("arrays", tmp_path)
    monkeypatch.delenv("DCTPS_DATA", raising=False)
    with pytest.raises(DataError, match="needs --data-dir or DCTPS_DATA"):
        load_dataset("arrays")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated")


@given(st.data())
def test_damaged_files_end_in_a_data_error(scratch, data):
    file = io.BytesIO()
    np.savez_compressed(file, **ARRAYS)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = scratch / "a.npz"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        load_dataset("arrays", path)
    except DataError as error:
        assert str(path) in str(error)
