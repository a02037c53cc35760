"""What a DCTpS network holds: O(nnz), nothing of size O(out * in)."""

import gc
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from dctps import report, sparsify_
from dctps.nn import DpSLayer


def lenet5() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def wide() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 4096), nn.ReLU(), nn.Linear(4096, 4096))


def vgg19() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (
        64,
        64,
        0,
        128,
        128,
        0,
        256,
        256,
        256,
        256,
        0,
        512,
        512,
        512,
        512,
        0,
        512,
        512,
        512,
        512,
        0,
    ):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def live_tensor_bytes() -> int:
    """Bytes of every tensor storage that Python can reach, each once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and not thing.is_meta and not thing.is_sparse_csr:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("offset", ["dct", "sdct"])
@pytest.mark.parametrize(
    ("build", "density", "batch"), [(lenet5, 0.01, 4), (wide, 1e-3, 4), (wide, 0.01, 64), (vgg19, 1e-3, 2)]
)
def test_a_training_step_with_adam_leaves_o_nnz(build, density: float, batch: int, offset: str) -> None:  # type: ignore[no-untyped-def]
    from dctps.transforms import table_bytes
    from dctps.transforms.tables import clear_tables

    clear_tables()
    before = live_tensor_bytes()
    with torch.device("meta"):
        model = build()
    sparsify_(model, density, offset=offset)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(batch, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    held = live_tensor_bytes() - before - table_bytes()

    nnz = sum(layer.nnz for layer in model.modules() if isinstance(layer, DpSLayer))
    prunable = {id(p) for m in model.modules() if isinstance(m, DpSLayer) for p in (m.values,)}
    # a parameter, its gradient and Adam's two moments; then the buffers of the norms
    others = sum(16 * p.numel() for p in model.parameters() if id(p) not in prunable)
    others += sum(
        b.nbytes for m in model.modules() if not isinstance(m, DpSLayer) for b in m.buffers(recurse=False)
    )
    assert held <= 32 * nnz + others + 64 * 1024
    assert held >= 24 * nnz  # the measurement sees the values at all
    assert report(model).shape_table_bytes == table_bytes()


def test_converting_a_billion_weights_takes_little_memory() -> None:
    """In a process of its own, whose peak no other test has raised."""
    program = """
        import resource, torch
        import dctps
        from torch import nn
        from dctps import sparsify_
        sparsify_(nn.Sequential(nn.Linear(8, 8)), 0.5)(torch.zeros(1, 8))  # imports done
        with torch.device("meta"):
            model = nn.Sequential(*(nn.Linear(16384, 15259) for _ in range(4)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sparsify_(model, 1e-5)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(dctps.report(model).weights, dctps.report(model).nnz, (after - before) * 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    weights, nnz, rise = map(int, done.stdout.split())
    assert weights == 1_000_013_824 and nnz == 10_000
    assert rise < 150e6
