"""Triton kernels that make W and its gradients on a GPU. Triton is imported when they are first called."""

from dctps.gpu.launch import Entries as Entries
from dctps.gpu.launch import is_usable as is_usable
from dctps.gpu.launch import make_weight as make_weight
from dctps.gpu.launch import weight_gradients as weight_gradients
