"""Data sets as tensors: loaded whole, checked, split, augmented and batched on any device."""

from dctps.data.augment import batches, normalize, random_crop_flip
from dctps.data.cifar import load_cifar10, load_cifar100
from dctps.data.digits import load_digits
from dctps.data.download import download
from dctps.data.registry import list_datasets, load_dataset, register_dataset
from dctps.data.tensors import DataError, Dataset, ImageTensors, split_validation

__all__ = [
    "DataError",
    "Dataset",
    "ImageTensors",
    "batches",
    "download",
    "list_datasets",
    "load_cifar10",
    "load_cifar100",
    "load_dataset",
    "load_digits",
    "normalize",
    "random_crop_flip",
    "register_dataset",
    "split_validation",
]
