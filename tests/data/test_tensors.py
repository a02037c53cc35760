import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps.data import Dataset, ImageTensors, split_validation


def numbered(n: int) -> ImageTensors:
    """Images that carry their own number, up to 65,535, in two pixels; the label is the number."""
    number = torch.arange(n)
    images = torch.stack([number // 256, number % 256], dim=1).to(torch.uint8).view(n, 1, 1, 2)
    return ImageTensors(images, number)


def numbers(data: ImageTensors) -> list[int]:
    pixels = data.images.view(-1, 2).to(torch.int64)
    assert (pixels[:, 0] * 256 + pixels[:, 1]).equal(data.labels)
    return data.labels.tolist()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), r"images must be torch.uint8.*float32"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\(2, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), r"labels must be torch.int64.*float32"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            torch.zeros(3, dtype=torch.int64),
            r"\(2,\), got .*\(3,\)",
        ),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            torch.zeros(2, dtype=torch.int64, device="meta"),
            "images are on cpu, labels on meta",
        ),
    ],
)
def test_tensors_that_are_no_labelled_images(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageTensors(images, labels)


def test_select_and_to():
    data = numbered(300)
    assert len(data) == 300
    assert numbers(data.select(torch.tensor([299, 3, 3]))) == [299, 3, 3]
    assert data.to("meta").images.device.type == data.to("meta").labels.device.type == "meta"


def dataset(**changes) -> Dataset:
    part = ImageTensors(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    settings = {"name": "toy", "train": part, "test": part, "classes": 2, "mean": (0.5,), "std": (0.2,)}
    return Dataset(**{**settings, "flip": False, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": numbered(2)}, r"training images are \(1, 4, 4\), test images \(1, 1, 2\)"),
        ({"mean": (0.5, 0.5)}, "one number for each of 1 channels"),
        ({"std": ()}, "one number for each of 1 channels"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"classes": 1}, "training labels run from 0 to 1, which is not within 0..0"),
    ],
)
def test_parts_that_do_not_fit(changes, message):
    dataset()
    with pytest.raises(ValueError, match=message):
        dataset(**changes)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 2000), share=st.floats(0, 1, exclude_max=True), seed=st.integers(-(2**70), 2**70))
def test_a_split_is_exact_ordered_and_leaves_nothing_out(n, share, seed):
    size = int(share * n)
    train, validation = split_validation(numbered(n), size, seed)
    assert len(validation) == size
    assert sorted(numbers(train) + numbers(validation)) == list(range(n))
    assert numbers(train) == sorted(numbers(train))
    assert numbers(validation) == sorted(numbers(validation))


def test_splits_of_one_seed_are_equal_and_nested_and_of_two_seeds_differ():
    data = numbered(1000)
    small, large = (set(numbers(split_validation(data, size, 0)[1])) for size in (100, 200))
    other = set(numbers(split_validation(data, 100, 1)[1]))
    assert small == set(numbers(split_validation(data, 100, 0)[1]))
    assert small < large
    assert 0 < len(small & other) < 30  # 10 expected


def test_a_split_follows_the_published_definition():
    """The first 3 of the order that sorts SplitMix64's outputs, worked out here in plain integers."""
    key = int.from_bytes(hashlib.blake2b(b"7//split", digest_size=8).digest(), "little")
    mask = 2**64 - 1

    def draw(i: int) -> int:
        z = (key + (i + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) >> 1

    order = sorted(range(20), key=draw)
    assert numbers(split_validation(numbered(20), 3, 7)[1]) == sorted(order[:3])


@pytest.mark.parametrize("size", [-1, 10, 11])
def test_a_validation_size_out_of_range(size):
    with pytest.raises(ValueError, match=rf"validation size {size} is not within 0..9 of 10 training images"):
        split_validation(numbered(10), size, 0)
