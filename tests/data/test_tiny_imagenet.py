import numpy as np
import pytest
from PIL import Image
from tests.support.image_files import pixels, tiny_imagenet, write

from dctps.data import DataError, Description, describe_dataset, load_dataset

TRAIN, ANNOTATIONS = "train/n02/images", "val/val_annotations.txt"


def empty(wnid):
    (wnid / f"{wnid.name}_boxes.txt").unlink()
    for path in (wnid / "images").iterdir():
        path.unlink()


@pytest.mark.parametrize("above", [True, False])
def test_labels_are_in_the_order_of_wnids_and_val_is_the_test_set(tmp_path, above):
    folder = tiny_imagenet(tmp_path)
    found = load_dataset("tinyimagenet", tmp_path if above else folder)
    assert found.train.images.shape == (9, 3, 64, 64) and found.classes == 3
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with Image.open(folder / "train" / "n01" / "images" / "n01_2.JPEG") as image:
        assert np.array_equal(found.train.images[5].permute(1, 2, 0).numpy(), np.asarray(image))
    # Annotated as wnids[0], wnids[2], wnids[1], wnids[0], in another order than the files'.
    assert found.test.labels.tolist() == [0, 2, 1, 0]
    assert found.class_names == ("n03", "goldfish, Carassius auratus", "salamander")
    assert found.flip


def test_grey_images_among_them_and_a_smaller_size(tmp_path):
    folder = tiny_imagenet(tmp_path)
    grey = pixels(3, 64, 64)
    write(folder / "train" / "n01" / "images" / "n01_0.JPEG", grey, quality=100)
    found = load_dataset("tinyimagenet", tmp_path, image_size=32)
    assert found.train.images.shape == (9, 3, 32, 32)
    assert (found.train.images[3] == found.train.images[3, :1]).all()


def test_described_without_files():
    assert describe_dataset("tinyimagenet") == Description(classes=200, channels=3, image_size=64)
    assert describe_dataset("tinyimagenet", 32) == Description(classes=200, channels=3, image_size=32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.rename(f.with_name("other")), r"not in .*: fetch http://cs231n.*unpack it.*--data-dir"),
        (lambda f: (f / "wnids.txt").unlink(), r"wnids\.txt \(No such file or directory\)"),
        (lambda f: (f / "wnids.txt").write_bytes(b"\xff\xfe"), r"wnids\.txt is no text"),
        (
            lambda f: (f / TRAIN / "n02_1.JPEG").unlink(),
            r"lacks 1 of the 3 images that .*, such as n02_1\.JP",
        ),
        (lambda f: empty(f / "train/n02"), "n02/images holds no image"),
        (lambda f: (f / "val/images/val_2.JPEG").unlink(), r"lacks 1 of the 4 images that .*such as val_2"),
        (lambda f: (f / ANNOTATIONS).unlink(), r"val_annotations\.txt \(No such file"),
        (lambda f: (f / ANNOTATIONS).write_text("val_0.JPEG\tn77\n"), "line 1 of .* names no class"),
        (lambda f: (f / ANNOTATIONS).write_text("val_0.JPEG\n"), "line 1 of .* names no class"),
        (lambda f: (f / ANNOTATIONS).write_text("val_0.JPEG\tn01\n"), r"not name the image val_1\.JPEG"),
        (lambda f: (f / TRAIN / "n02_0.JPEG").write_bytes(b"\xff\xd8\xff"), r"read the image .*n02_0\.JPEG"),
        (lambda f: write(f / "val/images/val_1.JPEG", pixels(0, 60, 64, 3)), r"val_1\.JPEG is 64x60 where"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, spoil, message):
    spoil(tiny_imagenet(tmp_path))
    with pytest.raises(DataError, match=message):
        load_dataset("tinyimagenet", tmp_path)


def test_without_a_folder(monkeypatch):
    monkeypatch.delenv("DCTPS_DATA", raising=False)
    with pytest.raises(DataError, match="needs a data folder: fetch"):
        load_dataset("tinyimagenet")
