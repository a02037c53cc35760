import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dctps.data import ImageTensors, batches, normalize, random_crop_flip


def generator(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def naive_crop(image: torch.Tensor, row: int, column: int, mirrored: bool, padding: int) -> list:
    """One crop, pixel by pixel: (row, column) is its corner in the padded image."""
    channels, height, width = image.shape
    pixels = image.tolist()

    def pixel(c: int, y: int, x: int) -> int:
        x = width - 1 - x if mirrored else x
        y, x = y + row - padding, x + column - padding
        return pixels[c][y][x] if 0 <= y < height and 0 <= x < width else 0

    return [[[pixel(c, y, x) for x in range(width)] for y in range(height)] for c in range(channels)]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    padding=st.integers(0, 2),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
    channels_last=st.booleans(),
)
def test_every_result_is_one_of_the_possible_crops(shape, padding, flip, seed, channels_last):
    images = noise(*shape, seed=seed)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    result = random_crop_flip(images, generator(seed), padding=padding, flip=flip)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert images.equal(before)
    places = range(2 * padding + 1)
    coins = (False, True) if flip else (False,)
    for image, cropped in zip(images, result.tolist(), strict=True):
        possible = (naive_crop(image, r, c, m, padding) for r in places for c in places for m in coins)
        assert any(cropped == candidate for candidate in possible)


@pytest.mark.parametrize("flip", [False, True])
def test_every_place_and_side_is_equally_likely(flip):
    # A pixel's value tells where it was. 9 x 9 (x 2) outcomes, about 100 images each.
    n = 8100 * (1 + flip)
    position = 1 + torch.arange(144, dtype=torch.uint8).view(1, 1, 12, 12)
    result = random_crop_flip(position.expand(n, -1, -1, -1), generator(), flip=flip)
    here, right = result[:, 0, 5, 5].long(), result[:, 0, 5, 6].long()
    mirrored = here > right
    assert (right - here).abs().eq(1).all()
    outcome, counts = torch.stack([here, mirrored.long()]).unique(dim=1, return_counts=True)
    assert outcome.shape[1] == 81 * (1 + flip)
    # Chi-square has mean 80 or 161 and standard deviation 12.6 or 17.9: within five of them.
    chi_square = float(((counts - 100.0) ** 2 / 100).sum())
    freedom = 81 * (1 + flip) - 1
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_the_generator_alone_decides():
    images = noise(50, 3, 32, 32)
    rng = generator(1)
    first, second = random_crop_flip(images, rng), random_crop_flip(images, rng)
    torch.manual_seed(5)
    again = generator(1)
    assert random_crop_flip(images, again).equal(first)
    assert random_crop_flip(images, again).equal(second)
    assert not first.equal(second)


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))
def test_normalize(shape):
    images = noise(*shape)
    mean, std = (0.1, 0.5, 0.45, 0.9)[: shape[1]], (0.2, 0.3, 1.0, 0.05)[: shape[1]]
    expected = images.double() / 255
    for c in range(shape[1]):
        expected[:, c] = (expected[:, c] - mean[c]) / std[c]
    result = normalize(images, mean, std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=5e-6)


def test_normalize_needs_a_mean_and_a_std_for_each_channel():
    with pytest.raises(ValueError, match="shorter"):
        normalize(noise(1, 3, 2, 2), (0.5, 0.5, 0.5), (0.5,))


UNIT = {"mean": (0.0,), "std": (1 / 255,)}  # leaves the pixels as they are


def labelled(n: int) -> ImageTensors:
    """Image i is all i + 1."""
    images = (1 + torch.arange(n)).to(torch.uint8).view(n, 1, 1, 1).expand(n, 1, 3, 3).contiguous()
    return ImageTensors(images, torch.arange(n))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("n", [0, 1, 6, 7, 8])
def test_batches_give_each_image_once(n, shuffle, drop_last):
    sizes, seen = [], []
    for images, labels in batches(
        labelled(n), 3, generator=generator(), shuffle=shuffle, drop_last=drop_last, **UNIT
    ):
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, (1.0 + labels).view(-1, 1, 1, 1).expand(-1, 1, 3, 3))
        sizes.append(len(labels))
        seen += labels.tolist()
    assert sizes == [3] * (n // 3) + ([n % 3] if n % 3 and not drop_last else [])
    assert len(set(seen)) == len(seen) == sum(sizes)
    if not shuffle:
        assert seen == list(range(len(seen)))


def epoch(rng: torch.Generator, **options) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(batches(labelled(200), 32, generator=rng, shuffle=True, **UNIT, **options))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def test_the_order_is_the_generators():
    rng = generator(3)
    first, second, again = epoch(rng)[1], epoch(rng)[1], epoch(generator(3))[1]
    assert first.equal(again)
    assert not first.equal(second)


def test_augmented_batches_are_crops_of_the_images():
    images, labels = epoch(generator(0), augment=True, flip=True)
    value = (1 + labels).view(-1, 1, 1, 1).to(torch.float32)
    assert ((images - value).abs().lt(1e-3) | images.eq(0)).all()
    assert images.eq(0).any()
    assert not images.eq(0).all()
    assert images.equal(epoch(generator(0), augment=True, flip=True)[0])


def test_wrong_arguments_are_reported_at_the_call():
    with pytest.raises(ValueError, match="batch size must be at least 1, got 0"):
        batches(labelled(3), 0, **UNIT)
    for option in ("shuffle", "augment"):
        with pytest.raises(ValueError, match=r"pass a torch.Generator"):
            batches(labelled(3), 2, **{option: True}, **UNIT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cpu_generator_gives_the_same_batches_on_cuda():
    data = ImageTensors(noise(100, 3, 32, 32), torch.arange(100))
    options = {"shuffle": True, "augment": True, "flip": True, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    on_cpu = batches(data, 32, generator=generator(), **options)
    on_cuda = batches(data.to("cuda"), 32, generator=generator(), **options)
    for (images, labels), (cuda_images, cuda_labels) in zip(on_cpu, on_cuda, strict=True):
        assert cuda_images.device.type == "cuda"
        assert labels.equal(cuda_labels.cpu())
        torch.testing.assert_close(images, cuda_images.cpu())
    own = random_crop_flip(data.images.cuda(), generator(device="cuda"))
    assert own.device.type == "cuda"
