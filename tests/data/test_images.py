import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.support.image_files import pixels, write

from dctps.data import DataError
from dctps.data.images import decode, read_images, resize


def test_lossless_colours_come_back_exactly(tmp_path):
    arrays = [pixels(i, 5, 7, 3) for i in range(130)]  # more than one thread's share
    paths = [write(tmp_path / f"{i}.png", array) for i, array in enumerate(arrays)]
    read = read_images(paths, None)
    assert read.dtype == torch.uint8
    assert np.array_equal(read.permute(0, 2, 3, 1).numpy(), np.stack(arrays))


def test_grey_images_have_one_channel_unless_there_is_a_coloured_one(tmp_path):
    grey = [write(tmp_path / f"{i}.png", pixels(i, 4, 4)) for i in range(2)]
    colour = write(tmp_path / "colour.png", pixels(9, 4, 4, 3))
    assert np.array_equal(read_images(grey, None)[1, 0].numpy(), pixels(1, 4, 4))
    mixed = read_images([*grey, colour], None)
    assert mixed.shape == (3, 3, 4, 4)
    assert np.array_equal(mixed[0].numpy(), np.stack([pixels(0, 4, 4)] * 3))


def test_transparency_is_over_white(tmp_path):
    array = np.zeros((2, 2, 4), np.uint8)
    array[..., :3], array[..., 3] = 200, [[0, 255], [51, 255]]  # 51 / 255 is a fifth
    read, grey = decode(write(tmp_path / "a.png", array), None)
    assert read[..., 0].tolist() == [[255, 200], [244, 200]]
    assert not grey
    palette = Image.fromarray(pixels(0, 2, 2, 3)).quantize(4)
    palette.save(tmp_path / "p.png", transparency=bytes([0, 255, 255, 255]))
    read, _ = decode(tmp_path / "p.png", None)
    clear = np.asarray(palette) == 0
    assert (read[clear] == 255).all() and clear.any()
    both = np.stack([pixels(0, 2, 2), np.full((2, 2), 255, np.uint8)], axis=-1)
    Image.fromarray(both, "LA").save(tmp_path / "la.png")
    read, grey = decode(tmp_path / "la.png", None)
    assert grey and np.array_equal(read[..., 1], pixels(0, 2, 2))


def test_cmyk_one_bit_and_animations(tmp_path):
    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "red.tif")
    assert decode(tmp_path / "red.tif", None)[0][0, 0].tolist() == [255, 0, 0]
    Image.new("1", (3, 2), 1).save(tmp_path / "white.png")
    read, grey = decode(tmp_path / "white.png", None)
    assert (read == 255).all() and grey
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("blue", "red")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "a.gif", None)[0][0, 0].tolist() == [0, 0, 255]


def test_photographs_are_turned_upright(tmp_path):
    array = pixels(0, 4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    path = write(tmp_path / "a.png", array, exif=exif)
    assert np.array_equal(decode(path, None)[0], np.rot90(array, -1))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 20), (20, 12), (4, 4)])
def test_the_middle_square_is_resized(tmp_path, height, width):
    # Of an image that is constant but for bands outside the middle square only the constant is left.
    side = min(height, width)
    array = np.zeros((height, width, 3), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    array[top : top + side, left : left + side] = (10, 20, 30)
    path = write(tmp_path / "a.png", array)
    assert (read_images([path], 6).permute(0, 2, 3, 1) == torch.tensor([10, 20, 30])).all()
    tensor = torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0)
    assert resize(tensor, 6).equal(read_images([path], 6))
    assert resize(tensor[:, :1], 6).equal(read_images([path], 6)[:, :1])


def test_halving_averages():
    board = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(16, 16)
    halved = resize(board.expand(1, 1, 32, 32), 16)[0, 0, 4:12, 4:12].float()
    assert (halved - 127.5).abs().max() < 3  # picking every other pixel would give 0 or 255


def test_sizes_that_differ_are_named(tmp_path):
    first, second = write(tmp_path / "a.png", pixels(0, 4, 4)), write(tmp_path / "b.png", pixels(0, 4, 6))
    message = r"b\.png is 6x4 where .*a\.png is 4x4: --image-size 4 "
    with pytest.raises(DataError, match=message):
        read_images([first, second], None)
    assert read_images([first, second], 4).shape == (2, 1, 4, 4)


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 40000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png \(mode I;16: save it with 8 bits"):
        decode(tmp_path / "a.png", None)


def test_more_than_the_memory_is_refused(tmp_path):
    path = write(tmp_path / "a.png", pixels(0, 4, 4))
    with pytest.raises(DataError, match=r"take \d+ GiB and this machine has \d+ GiB of memory"):
        read_images([path] * 10**6, 4096)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_the_first_bad_file_is_named(tmp_path, content):
    paths = [write(tmp_path / f"{i}.png", pixels(i, 4, 4)) for i in range(200)]
    for index in (70, 150):
        paths[index].write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the image .*/70\.png \(.+\): replace it"):
        read_images(paths, None)


def test_a_missing_and_a_forbidden_file(tmp_path):
    with pytest.raises(DataError, match=r"a\.png \(No such file or directory\)"):
        decode(tmp_path / "a.png", None)
    (tmp_path / "b.png").mkdir()
    with pytest.raises(DataError, match=r"b\.png \(Is a directory\)"):
        decode(tmp_path / "b.png", None)


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(0, 9, 9, 3)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@given(data=st.data())
def test_damaged_files_end_in_a_data_error_or_an_image(scratch, kind, data):
    content = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = scratch / f"a.{kind.lower()}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read, _ = decode(path, 4)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert read.shape == (4, 4, 3)
