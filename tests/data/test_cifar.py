import io
import os
import pickle
import tarfile
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.cifar_files import SMALL10, SMALL100, images, published, python2_pickle, tar_gz, write

from dctps.data import DataError, load_dataset
from dctps.data.cifar import CIFAR10, CIFAR100, load_cifar
from dctps.data.pickles import parse_binary, read_batch


@pytest.fixture(params=[SMALL10, SMALL100], ids=["cifar10", "cifar100"])
def small(request):
    return request.param


@pytest.mark.parametrize("version", [0, 1], ids=["python", "binary"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_every_published_form_gives_the_same_tensors(small, version, packed, tmp_path):
    spec, unpacked, archives = small
    layout = spec.layouts[version]
    if packed:
        write(tmp_path, {layout.archive.name: archives[layout.archive.name]})
    else:
        write(tmp_path, {name: data for name, data in unpacked.items() if name.startswith(layout.folder)})
    before = sorted(tmp_path.rglob("*"))
    dataset = load_cifar(spec, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked to disk

    parts = [images(seed, 3, spec.classes) for seed in range(len(layout.files))]
    pixels = torch.from_numpy(np.stack([p for p, _ in parts])).view(-1, 3, 32, 32)
    labels = torch.tensor([y for _, ys in parts for y in ys])
    training = 3 * len(layout.train)
    assert dataset.name == spec.name
    assert dataset.classes == spec.classes
    assert dataset.flip
    assert dataset.train.images.equal(pixels[:training])
    assert dataset.train.labels.equal(labels[:training])
    assert dataset.test.images.equal(pixels[training:])
    assert dataset.test.labels.equal(labels[training:])


@pytest.mark.parametrize("version", [0, 1], ids=["python", "binary"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_the_folder_and_the_archive_themselves_are_taken(small, version, packed, tmp_path):
    spec, unpacked, archives = small
    layout = spec.layouts[version]
    write(tmp_path, {name: data for name, data in unpacked.items() if name.startswith(layout.folder)})
    write(tmp_path, {layout.archive.name: archives[layout.archive.name]})
    given = tmp_path / (layout.archive.name if packed else layout.folder)
    assert load_cifar(spec, given).to_dict() == load_cifar(spec, tmp_path).to_dict()


def test_an_incomplete_folder_gives_way_to_an_archive(tmp_path):
    spec, unpacked, archives = SMALL10
    write(tmp_path, unpacked)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"which lacks data_batch_3.*which lacks test_batch.bin.*--data-dir"):
        load_cifar(spec, tmp_path)
    write(tmp_path, {"cifar-10-binary.tar.gz": archives["cifar-10-binary.tar.gz"]})
    assert len(load_cifar(spec, tmp_path).train) == 15


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(
        DataError, match=r"not in .*cifar-100-python/ or cifar-100-python.tar.gz or .*DCTPS_DATA"
    ):
        load_cifar(CIFAR100, tmp_path)
    with pytest.raises(DataError, match=r"no data folder .*nowhere: .*--data-dir"):
        load_cifar(CIFAR10, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cannot look into .*File name too long.*--data-dir"):
        load_cifar(CIFAR10, tmp_path / ("x" * 5000))
    with pytest.raises(DataError, match=r"cifar10 needs a data folder.*--data-dir.*DCTPS_DATA"):
        load_cifar(CIFAR10, None, download=True)


def mutations(data: bytes, count: int, seed: int):
    """Flip bits, cut, lengthen, zero a stretch, swap two stretches: never the identity."""
    rng = np.random.default_rng(seed)
    while count:
        changed = bytearray(data)
        a, b = sorted(rng.integers(0, len(data), 2).tolist())
        match rng.integers(5):
            case 0:
                changed[a] ^= 1 << int(rng.integers(8))
            case 1:
                del changed[a:]
            case 2:
                changed += bytes(b - a + 1)
            case 3:
                changed[a:b] = bytes(b - a)
            case 4:
                changed = changed[b:] + changed[:b]
        if bytes(changed) != data:
            count -= 1
            yield bytes(changed)


@pytest.mark.parametrize("version", [0, 1], ids=["python", "binary"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_none_of_a_thousand_mutated_files_is_taken(small, version, packed, tmp_path):
    """125 for each of the eight forms; nor does any make the reader allocate beyond ten times the files."""
    spec, unpacked, archives = small
    layout = spec.layouts[version]
    if packed:
        path, data = tmp_path / layout.archive.name, archives[layout.archive.name]
    else:
        write(tmp_path, {name: data for name, data in unpacked.items() if name.startswith(layout.folder)})
        path = tmp_path / layout.folder / layout.test[0].name
        data = path.read_bytes()
    highest = 0
    for mutant in mutations(data, 125, seed=version):
        path.write_bytes(mutant)
        on_disk = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
        tracemalloc.start()
        with pytest.raises(
            DataError, match=r"(cut off|longer|damaged).*delete it and fetch it again"
        ) as caught:
            load_cifar(spec, tmp_path)
        highest = max(highest, tracemalloc.get_traced_memory()[1] - 10 * on_disk)
        tracemalloc.stop()
        assert str(path) in str(caught.value)
    assert highest < 1 << 18  # what Python takes for itself
    path.write_bytes(data)
    load_cifar(spec, tmp_path)


def test_a_file_is_read_no_further_than_its_published_size(tmp_path):
    spec, unpacked, _ = SMALL10
    write(tmp_path, unpacked)
    with (tmp_path / "cifar-10-batches-py" / "test_batch").open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file, larger than any memory
    with pytest.raises(DataError, match="longer than the published"):
        load_cifar(spec, tmp_path)


def with_first_file(data: bytes, version: int, count: int = 3):
    """The small CIFAR-10 whose first training file is `data`, its checksum included."""
    spec, unpacked, _ = SMALL10
    layout = spec.layouts[version]
    first = published(layout.train[0].name, data, count)
    layout = replace(layout, train=(first, *layout.train[1:]))
    return replace(spec, layouts=(layout,)), unpacked | {f"{layout.folder}/{first.name}": data}


PIXELS = np.zeros((3, 3072), np.uint8)


@pytest.mark.parametrize(
    ("data", "version", "message"),
    [
        (python2_pickle(PIXELS, labels=[0, 10, 1]), 0, "labels outside 0..9"),
        (
            python2_pickle(PIXELS, labels=[0, 1]),
            0,
            r"pixels \(3, 3072\) and labels \(2,\) instead of 3 images",
        ),
        (python2_pickle(PIXELS[:2], labels=[0, 1]), 0, r"pixels \(2, 3072\)"),
        (python2_pickle(PIXELS, fine_labels=[0, 1, 2]), 0, "KeyError: b'labels'"),
        (b"no pickle at all", 0, "data_batch_1 of cifar10: not the pickle of a CIFAR batch"),
        (b"", 0, "not the pickle of a CIFAR batch"),
        (b"\x0a" + bytes(3072) + bytes(2 * 3073), 1, "labels outside 0..9"),
        (bytes(2 * 3073), 1, r"pixels \(2, 3072\)"),
        (bytes(3 * 3073 - 1), 1, "no whole number of 3073-byte records"),
    ],
)
def test_wrong_contents_under_a_right_checksum(data, version, message, tmp_path):
    spec, files = with_first_file(data, version)
    write(tmp_path, files)
    with pytest.raises(DataError, match=message):
        load_cifar(spec, tmp_path)


def with_archive(data: bytes):
    spec, _, _ = SMALL10
    layout = replace(spec.layouts[1], archive=published("cifar-10-binary.tar.gz", data))
    return replace(spec, layouts=(layout,)), {"cifar-10-binary.tar.gz": data}


def linking_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("../cifar-10-batches-bin/data_batch_1.bin"))
    return buffer.getvalue()


MEMBERS = {n: d for n, d in SMALL10[1].items() if n.startswith("cifar-10-batches-bin")}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no archive at all", "cannot read .*cifar-10-binary.tar.gz"),
        (SMALL10[2]["cifar-10-binary.tar.gz"][:5000], "cannot read .*cifar-10-binary.tar.gz"),
        (tar_gz(dict(list(MEMBERS.items())[:-1])), "lacks cifar-10-batches-bin/test_batch.bin"),
        (
            tar_gz(MEMBERS | {"cifar-10-batches-bin/test_batch.bin": b"short"}),
            "test_batch.bin in .* is cut off",
        ),
        (tar_gz(MEMBERS | {"cifar-10-batches-bin/test_batch.bin": bytes(3 * 3073)}), "is damaged"),
        (linking_archive(), "cannot read|lacks cifar-10-batches-bin/data_batch_1.bin"),
    ],
)
def test_wrong_archives_under_a_right_checksum(data, message, tmp_path):
    spec, files = with_archive(data)
    write(tmp_path, files)
    with pytest.raises(DataError, match=message):
        load_cifar(spec, tmp_path)


def test_an_unreadable_file_is_named(tmp_path):
    spec, unpacked, _ = SMALL10
    write(tmp_path, unpacked)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything, whatever the permissions")
    with pytest.raises(DataError, match=r"cannot read .*data_batch_2: Permission denied"):
        load_cifar(spec, tmp_path)


# The real files.


def real_folder(*needed: str) -> Path:
    if not os.environ.get("DCTPS_DATA"):
        pytest.skip("DCTPS_DATA is not set: the real CIFAR files are needed")
    folder = Path(os.environ["DCTPS_DATA"])
    for name in needed:
        if not (folder / name).is_file():
            pytest.skip(f"DCTPS_DATA holds no {name}")
    return folder


def unpickled(path: Path) -> dict:
    """The file as the standard library reads it, which is what its publisher recommends."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's old module names
        return pickle.load(file, encoding="bytes")


@pytest.mark.real_data
def test_real_cifar10_from_python_files_and_from_binary_files_made_of_them(tmp_path):
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    folder = real_folder(*(f"cifar-10-batches-py/{name}" for name in names))
    dataset = load_dataset("cifar10", folder)
    batches = [unpickled(folder / "cifar-10-batches-py" / name) for name in names]
    pixels = np.stack([batch[b"data"] for batch in batches])
    labels = np.stack([np.array(batch[b"labels"], np.uint8) for batch in batches])
    assert np.array_equal(dataset.train.images.numpy(), pixels[:5].reshape(50000, 3, 32, 32))
    assert np.array_equal(dataset.test.images.numpy(), pixels[5].reshape(10000, 3, 32, 32))
    assert dataset.train.labels.tolist() == labels[:5].reshape(-1).tolist()
    assert dataset.test.labels.tolist() == labels[5].tolist()

    levels = np.stack([np.bincount(pixels[:5, :, 1024 * c : 1024 * (c + 1)].reshape(-1)) for c in range(3)])
    share, value = levels / levels.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ value
    std = np.sqrt(share @ value**2 - mean**2)
    assert dataset.mean == tuple(mean.round(4).tolist())
    assert dataset.std == tuple(std.round(4).tolist())

    write(
        tmp_path,
        {
            f"cifar-10-batches-bin/{name}.bin": np.concatenate([y[:, None], x], axis=1).tobytes()
            for name, x, y in zip(names, pixels, labels, strict=True)
        },
    )
    del batches
    binary = load_dataset("cifar10", tmp_path)  # under the checksums of the published .bin files
    assert binary.train.images.equal(dataset.train.images)
    assert binary.train.labels.equal(dataset.train.labels)
    assert binary.test.images.equal(dataset.test.images)
    assert binary.test.labels.equal(dataset.test.labels)


@pytest.mark.real_data
@pytest.mark.parametrize("part", ["train", "test"])
def test_real_cifar100_files_in_both_versions(part):
    """The python file fixes every byte of the binary file, so each proves the other's size and checksum."""
    path = real_folder(f"cifar-100-python/{part}") / "cifar-100-python" / part
    python, binary = (getattr(layout, part)[0] for layout in CIFAR100.layouts)
    data, batch = path.read_bytes(), unpickled(path)
    coarse, fine = (np.array(batch[key], np.uint8)[:, None] for key in (b"coarse_labels", b"fine_labels"))
    records = np.concatenate([coarse, fine, batch[b"data"]], axis=1).tobytes()
    assert published(part, data, len(fine)) == python
    assert published(f"{part}.bin", records, len(fine)) == binary
    for pixels, labels in (read_batch(data, b"fine_labels"), parse_binary(records, label_bytes=2)):
        assert np.array_equal(pixels, batch[b"data"])
        assert labels.tolist() == batch[b"fine_labels"]


@pytest.mark.real_data
def test_real_cifar100():
    dataset = load_dataset("cifar100", real_folder("cifar-100-python/train", "cifar-100-python/test"))
    assert torch.bincount(dataset.train.labels).tolist() == [500] * 100
    assert torch.bincount(dataset.test.labels).tolist() == [100] * 100
    pixels = dataset.train.images.transpose(0, 1).flatten(1)
    assert dataset.mean == tuple(round(float(c.double().mean() / 255), 4) for c in pixels)
    assert dataset.std == tuple(round(float(c.double().std() / 255), 4) for c in pixels)
