"""The trained network of a finished run, with what its images need, and its answers to other images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dctps.data import DataError, Description, normalize
from dctps.data.folder import image_files
from dctps.experiments import records
from dctps.experiments.backends import apply_backends_, backends_of_run
from dctps.experiments.config import resolve
from dctps.experiments.network import restore_network
from dctps.experiments.records import BEST, LAST
from dctps.experiments.settings import device_of
from dctps.names import lookup

_FILES = {"last": LAST, "best": BEST}
_BATCH = 256  # images that `predict` holds at a time


@dataclass(frozen=True)
class Preprocessing:
    """What a run did to its images before its network saw them: y = (x / 255 - mean) / std for each channel.

    Attributes:
        channels: of its images.
        image_size: their height and width, in pixels.
        mean: of each channel over the training images, pixels scaled to [0, 1].
        std: likewise.
        class_names: in the order of the network's outputs; numbers where the classes have no names.
    """

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images, uint8 (n, channels, image_size, image_size), to float32 of that shape.

        Raises:
            ValueError: another dtype or shape.
        """
        wanted = (self.channels, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or images.shape[1:] != wanted:
            raise ValueError(
                f"the run's images are torch.uint8 of shape (n, {', '.join(map(str, wanted))}), got "
                f"{images.dtype} of shape {tuple(images.shape)}"
            )
        return normalize(images, self.mean, self.std)

    def read(self, file: Path) -> Tensor:
        """The image in a file, uint8 (channels, image_size, image_size), as a run on a folder reads it.

        The largest square in its middle is resized to the run's size. Colours become grey for a run on grey
        images.

        Raises:
            DataError: without Pillow, for a file that is no image, and for images of other channels than 1
                or 3.
        """
        if self.channels not in (1, 3):
            raise DataError(f"the run's images have {self.channels} channels, and image files have 1 or 3")
        try:
            from dctps.data.images import decode, to_grey  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise DataError("image files are read by Pillow: pip install 'dctps[images]'") from error
        pixels, _ = decode(file, self.image_size)
        image = torch.from_numpy((to_grey(pixels) if self.channels == 1 else pixels).copy())
        return image.permute(2, 0, 1)


class Prediction(NamedTuple):
    """The likeliest classes of an image, and their probabilities, the likeliest first."""

    file: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def load_run(
    folder: Path | str, *, which: Literal["last", "best"] = "last", device: str = "cpu"
) -> nn.Module:
    """The trained network of the run in `folder`, in evaluation mode; no data are read.

    Its attribute `preprocessing` is the run's `Preprocessing`: `model(model.preprocessing(images))` are the
    outputs for uint8 images.

    Args:
        folder: of a finished run.
        which: the network after the last epoch, or after the best on validation.
        device: as for `run`.

    Raises:
        ValueError: no finished run, one without a validation set whose best network is asked for, or a
            damaged file.
    """
    folder = Path(folder)
    config, summary = resolve(records.read_config(folder)), records.read_summary(folder)
    file = folder / lookup("network", _FILES, which)
    if summary[f"{which}_epoch"] is None:
        raise ValueError(f"the run in {folder} has no validation set that says which is best: take the last")
    shape, facts = facts_of(folder)
    where = device_of(device)
    with torch.random.fork_rng(devices=[]):
        model = restore_network(config, shape, file, where)
    apply_backends_(model, backends_of_run(folder), where)
    model.preprocessing = facts  # type: ignore[assignment]
    return model.eval()


def facts_of(folder: Path) -> tuple[Description, Preprocessing]:
    """What the run in `folder` was trained on, for its network and for its images."""
    data = records.read_data(folder)
    if data is None:
        raise records.RunFolderError(
            f"{folder} has no {records.DATA}, as it was trained by an older version of dctps: train it again"
        )
    records.need(folder / records.DATA, data, "classes", "channels", "image_size", "mean", "std")
    shape = Description(data["classes"], data["channels"], data["image_size"])
    names = data.get("class_names") or range(shape.classes)
    facts = Preprocessing(
        shape.channels, shape.image_size, tuple(data["mean"]), tuple(data["std"]), tuple(map(str, names))
    )
    return shape, facts


def predict(model: nn.Module, paths: Sequence[Path | str], *, top: int = 1) -> Iterator[Prediction]:
    """The likeliest classes of image files, one after another, by a network of `load_run`.

    Args:
        model: on any device.
        paths: of images, or of folders, whose images are taken in the order of their names.
        top: how many classes of each.

    Raises:
        DataError: a path that is not there, a folder without images, or a file that is no image.
    """
    facts = model.preprocessing
    assert isinstance(facts, Preprocessing), "the network comes from load_run"
    if not 1 <= top <= len(facts.class_names):
        raise ValueError(f"top must be from 1 to the {len(facts.class_names)} classes, got {top}")
    files = [file for path in map(Path, paths) for file in _images_of(path)]
    device = next(model.parameters()).device
    for start in range(0, len(files), _BATCH):
        some = files[start : start + _BATCH]
        images = torch.stack([facts.read(file) for file in some])
        with torch.no_grad():
            found = model(facts(images.to(device))).softmax(1).topk(top)
        for file, shares, labels in zip(some, found.values.tolist(), found.indices.tolist(), strict=True):
            yield Prediction(file, tuple(facts.class_names[label] for label in labels), tuple(shares))


def _images_of(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"there is no {path}: give image files, or a folder of them")
    if not path.is_dir():
        return [path]
    try:
        files = image_files(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): make it readable") from error
    if not files:
        raise DataError(f"{path} holds no image: give image files, or a folder of them")
    return files
