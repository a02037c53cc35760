"""Data sets as tensors: loaded whole, checked, split, augmented and batched on any device."""

from dctps.data.arrays import from_arrays, load_arrays
from dctps.data.augment import batches, normalize, random_crop_flip
from dctps.data.cifar import load_cifar10, load_cifar100
from dctps.data.digits import load_digits
from dctps.data.download import download
from dctps.data.folder import load_folder
from dctps.data.registry import (
    describe_dataset,
    is_published,
    list_datasets,
    load_dataset,
    register_dataset,
    resized,
)
from dctps.data.statistics import channel_statistics
from dctps.data.tensors import (
    DataError,
    Dataset,
    Description,
    ImageTensors,
    first_of,
    split_test,
    split_validation,
)
from dctps.data.tiny_imagenet import load_tiny_imagenet

__all__ = [
    "DataError",
    "Dataset",
    "Description",
    "ImageTensors",
    "batches",
    "channel_statistics",
    "describe_dataset",
    "download",
    "first_of",
    "from_arrays",
    "is_published",
    "list_datasets",
    "load_arrays",
    "load_cifar10",
    "load_cifar100",
    "load_dataset",
    "load_digits",
    "load_folder",
    "load_tiny_imagenet",
    "normalize",
    "random_crop_flip",
    "register_dataset",
    "resized",
    "split_test",
    "split_validation",
]
