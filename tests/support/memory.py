"""The largest sum of bytes of the tensors that operations have made and that are still alive."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Counts storages that come into being within; what an operation uses inside itself is not seen."""

    def __init__(self):
        super().__init__()
        self.bytes, self.live = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {
            t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        result = function(*args, **(kwargs or {}))
        self.live = {at: (ref, size) for at, (ref, size) in self.live.items() if not ref.expired()}
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor):
                storage = made.untyped_storage()
                if storage.data_ptr() not in known:
                    self.live[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))
        return result
