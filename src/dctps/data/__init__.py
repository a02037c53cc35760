"""Data sets as tensors: loaded whole, checked, split, augmented and batched on any device."""

from dctps.data.arrays import from_arrays as from_arrays
from dctps.data.arrays import load_arrays as load_arrays
from dctps.data.augment import batches as batches
from dctps.data.augment import normalize as normalize
from dctps.data.augment import random_crop_flip as random_crop_flip
from dctps.data.cifar import load_cifar10 as load_cifar10
from dctps.data.cifar import load_cifar100 as load_cifar100
from dctps.data.digits import load_digits as load_digits
from dctps.data.download import download as download
from dctps.data.folder import load_folder as load_folder
from dctps.data.registry import describe_dataset as describe_dataset
from dctps.data.registry import is_published as is_published
from dctps.data.registry import list_datasets as list_datasets
from dctps.data.registry import load_dataset as load_dataset
from dctps.data.registry import register_dataset as register_dataset
from dctps.data.registry import resized as resized
from dctps.data.tensors import DataError as DataError
from dctps.data.tensors import Dataset as Dataset
from dctps.data.tensors import Description as Description
from dctps.data.tensors import ImageTensors as ImageTensors
from dctps.data.tensors import channel_statistics as channel_statistics
from dctps.data.tensors import first_of as first_of
from dctps.data.tensors import split_test as split_test
from dctps.data.tensors import split_validation as split_validation
from dctps.data.tiny_imagenet import load_tiny_imagenet as load_tiny_imagenet
