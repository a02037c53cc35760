import os
import shutil

import numpy as np
import pytest
import torch
from tests.support.image_files import classes_folder, pixels, write

from dctps.data import DataError, load_dataset
from dctps.data.cache import cached


@pytest.fixture
def folder(tmp_path):
    classes_folder(tmp_path / "train", {"ant": 3, "bee": 4})
    classes_folder(tmp_path / "test", {"ant": 1, "bee": 2})
    return tmp_path


def test_train_and_test_folders(folder):
    found = load_dataset("folder", folder)
    assert (len(found.train), len(found.test), found.classes) == (7, 3, 2)
    assert found.class_names == ("ant", "bee") and not found.flip
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1] and found.test.labels.tolist() == [0, 1, 1]
    assert np.array_equal(found.train.images[4].permute(1, 2, 0).numpy(), pixels(101, 8, 8, 3))
    assert np.allclose(found.mean, found.train.images.double().mean((0, 2, 3)) / 255)


def test_val_stands_in_for_a_missing_test_folder(folder):
    (folder / "test").rename(folder / "val")
    assert len(load_dataset("folder", folder).test) == 3


def test_a_class_without_test_images_keeps_its_label(folder):
    shutil.rmtree(folder / "test" / "ant")
    write(folder / "test" / "cat" / "0.png", pixels(5, 8, 8, 3))
    with pytest.raises(DataError, match="test/cat has no training images"):
        load_dataset("folder", folder)
    (folder / "train" / "cat").mkdir()
    write(folder / "train" / "cat" / "0.png", pixels(6, 8, 8, 3))
    assert load_dataset("folder", folder).test.labels.tolist() == [1, 1, 2]


@pytest.mark.parametrize("within_train", [False, True])
def test_one_folder_is_split_by_class_and_seed(tmp_path, within_train):
    classes_folder(tmp_path / "train" if within_train else tmp_path, {"a": 10, "b": 20, "c": 2})
    first, again, other = (load_dataset("folder", tmp_path, data_seed=seed) for seed in (0, 0, 1))
    assert torch.bincount(first.test.labels).tolist() == [2, 4, 1]
    assert torch.bincount(first.train.labels).tolist() == [8, 16, 1]
    assert first.test.sha256 == again.test.sha256 != other.test.sha256
    rows = torch.cat([first.train.images, first.test.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 32


def test_hidden_and_other_files_are_passed_over_and_folders_below_are_not(folder):
    (folder / "train" / "ant" / "notes.txt").write_text("no image")
    (folder / "train" / "ant" / ".hidden.png").write_text("no image")
    (folder / "train" / ".cache").mkdir()
    write(folder / "train" / "ant" / "more" / "below.png", pixels(7, 8, 8, 3))
    assert torch.bincount(load_dataset("folder", folder).train.labels).tolist() == [4, 4]


def test_one_size_for_all(folder):
    write(folder / "train" / "ant" / "wide.png", pixels(5, 8, 20, 3))
    with pytest.raises(DataError, match=r"wide\.png is 20x8 .*--image-size 8 "):
        load_dataset("folder", folder)
    found = load_dataset("folder", folder, image_size=16)
    assert found.train.images.shape == (8, 3, 16, 16)
    assert found.description.image_size == 16


def test_images_that_are_not_square_have_no_description(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        write(tmp_path / name, pixels(0, 6, 9))
    with pytest.raises(DataError, match="9x6, and networks take square ones: --image-size 6"):
        _ = load_dataset("folder", tmp_path).description
    assert load_dataset("folder", tmp_path, image_size=6).description.channels == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "there is no folder"),
        (lambda f: shutil.rmtree(f / "train"), "only test/ in it, where at least two classes are wanted"),
        (lambda f: shutil.rmtree(f / "train" / "bee"), "only ant/ in it"),
        (lambda f: (f / "train" / "bug").mkdir(), "train/bug holds no image: put some there"),
        (lambda f: (f / "train" / "ant" / "1.png").write_bytes(b"x"), r"train/ant/1\.png \(cannot identify"),
        (lambda f: (f / "train" / "ant" / "1.png").write_bytes(b""), r"train/ant/1\.png"),
    ],
)
def test_what_is_wrong_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(DataError, match=message):
        load_dataset("folder", folder)


def test_a_file_in_place_of_the_folder(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("x")
    with pytest.raises(DataError, match="there is no folder"):
        load_dataset("folder", tmp_path / "x")
    monkeypatch.delenv("DCTPS_DATA", raising=False)
    with pytest.raises(DataError, match="needs --data-dir or DCTPS_DATA"):
        load_dataset("folder")


class TestCache:
    def caches(self, folder):
        return sorted(path.name for path in folder.glob(".dctps*"))

    def count(self, folder, image_size=None):
        """Whether a call decodes, and what it gives."""
        calls = []
        paths = sorted(folder.glob("train/*/*.png"))

        def read():
            calls.append(1)
            return torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)

        return len(calls), cached(folder, paths, image_size, read), calls

    def test_a_second_call_reads_what_the_first_wrote(self, folder):
        for decoded in (1, 0):
            _, images, calls = self.count(folder)
            assert len(calls) == decoded and images.flatten().tolist() == list(range(12))
        assert self.caches(folder) == [".dctps-images-unchanged.safetensors"]
        assert len(self.count(folder, 16)[2]) == 1
        assert len(self.caches(folder)) == 2

    @pytest.mark.parametrize("change", ["content", "time", "name", "more"])
    def test_changed_files_are_decoded_again(self, folder, change):
        self.count(folder)
        path = folder / "train" / "ant" / "0.png"
        if change == "content":
            status = path.stat()
            write(path, pixels(1, 30, 30, 3))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        elif change == "time":
            os.utime(path, ns=(0, 0))
        elif change == "name":
            path.rename(path.with_name("00.png"))
        else:
            write(path.with_name("9.png"), pixels(1, 8, 8, 3))
        assert [len(self.count(folder)[2]) for _ in range(2)] == [1, 0]

    def test_every_flipped_byte_is_noticed(self, folder):
        self.count(folder)
        file = folder / self.caches(folder)[0]
        content = file.read_bytes()
        for index in range(0, len(content), 7):
            file.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
            _, images, calls = self.count(folder)
            assert calls or images.flatten().tolist() == list(range(12))
        file.write_bytes(content[:-1])
        assert self.count(folder)[2]

    def test_who_may_read_the_folder_may_read_the_cache(self, folder):
        folder.chmod(0o750)
        self.count(folder)
        assert (folder / self.caches(folder)[0]).stat().st_mode & 0o777 == 0o640

    def test_where_nothing_can_be_written_nothing_is(self, folder):
        blocked = folder / ".dctps-images-unchanged.safetensors"
        (blocked / "in the way").mkdir(parents=True)
        for _ in range(2):
            assert self.count(folder)[2]
        assert self.caches(folder) == [blocked.name]

    def test_the_data_set_is_the_same_from_the_cache(self, folder):
        first, again = load_dataset("folder", folder), load_dataset("folder", folder)
        assert self.caches(folder) and first.train.sha256 == again.train.sha256
        assert first.mean == again.mean
