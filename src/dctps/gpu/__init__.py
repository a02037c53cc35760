"""Triton kernels on a GPU: W and its gradients, and D and S on rows. Triton is imported when first called."""

from dctps.gpu import rows as rows
from dctps.gpu.launch import Entries as Entries
from dctps.gpu.launch import is_usable as is_usable
from dctps.gpu.launch import make_weight as make_weight
from dctps.gpu.launch import multiplies_tiles as multiplies_tiles
from dctps.gpu.launch import weight_gradients as weight_gradients
from dctps.gpu.products import Products as Products
