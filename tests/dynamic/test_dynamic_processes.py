"""Two processes under DistributedDataParallel have one support, that of one process on the joined batch."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.support.dynamics import batch, layers_of, network, supports
from tests.support.processes import in_group
from torch import nn

from dctps import DSR, SET, RigL

STEPS = 7


def train(model, share, kind, wrapped=None, **choices):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    dynamics = kind(model, optimizer, update_interval=3, end=20, drop_fraction=0.5, **choices)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy((wrapped or model)(x[share]), y[share]).backward()
        optimizer.step()
        dynamics.step()
    return supports(model), [layer.values.tolist() for layer in layers_of(model)]


def worker(rank, port, results):
    results.put((rank, in_group(rank, port, moved)))


def moved(rank):
    found = {}
    for kind in (RigL, SET):
        sent = []

        def counted(tensor, sent=sent):
            sent.append(tensor.nbytes)
            dist.all_reduce(tensor)

        model = network()
        wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        choices = {"all_reduce": counted} if rank == 0 and kind is RigL else {}
        share = slice(rank * 6, rank * 6 + 6)
        found[kind.__name__] = (*train(model, share, kind, wrapped, **choices), sum(sent))
    try:
        DSR(network(), torch.optim.SGD(network().parameters(), lr=0.1), end=3)
    except ValueError as error:
        found["DSR"] = str(error)
    from torch.distributed.fsdp import fully_shard

    sharded = fully_shard(network(), mesh=dist.init_device_mesh("cpu", (2,)))
    try:
        RigL(sharded, torch.optim.SGD(sharded.parameters(), lr=0.1), end=3)
    except ValueError as error:
        found["sharded"] = str(error)
    return found


@pytest.fixture(scope="module")
def found():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    running = mp.start_processes(worker, (port, results), 2, join=False, start_method="spawn")
    found = {}
    while not running.join(timeout=0.1):  # which raises what a process raised
        if not results.empty():
            found.update([results.get()])
    while not results.empty():
        found.update([results.get()])
    return found


@pytest.mark.parametrize("kind", [RigL, SET])
def test_two_processes_are_one(found, kind):
    alone = train(network(), slice(None), kind)
    assert alone[0] != supports(network())
    for rank in (0, 1):
        positions, values, _ = found[rank][kind.__name__]
        assert positions == alone[0]
        for ours, theirs in zip(values, alone[1], strict=True):
            assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), atol=1e-5)


def test_each_update_sums_every_dense_gradient_once(found):
    weights = sum(layer.offset.out_features * layer.offset.in_features for layer in layers_of(network()))
    flags = 4 * len(layers_of(network()))
    assert found[0]["RigL"][2] == 2 * (8 * weights + flags)


def test_what_cannot_work_is_refused(found):
    assert "which DistributedDataParallel cannot follow: use RigL or SET" in found[1]["DSR"]
    assert "are sharded over processes" in found[1]["sharded"]
