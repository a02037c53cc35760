"""Adapted networks under torch's own tools."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.utils.checkpoint import checkpoint

import dctps
from dctps.adapters import merge_adapter_, set_adapter_
from tests.adapters.networks import LABELS, fill, gpt2, images, quiet, small, tokens


def adapted(**options):
    return fill(dctps.adapt_(small(), 0.05, **options), std=0.1)


def test_copies_and_pickles_have_adapters_of_their_own():
    model = adapted(modules_to_save=["6"])
    y = model(images())
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stream, weights_only=False)
    with torch.no_grad():
        model[4].adapters["default"].values.zero_()
    assert not torch.equal(model(images()), y)
    for other in copies:
        assert torch.equal(other(images()), y)
        assert torch.equal(set_adapter_(other, None)(images()), small()(images()))


def test_state_dicts_load_strictly_into_a_network_that_is_adapted_alike():
    model, other = (
        adapted(modules_to_save=["6"], seed=1),
        dctps.adapt_(small(), 0.05, modules_to_save=["6"], seed=2),
    )
    state = model.state_dict()
    new = sorted(set(state) - set(small().state_dict()))
    assert [key for key in new if key.startswith("4.")] == [
        f"4.adapters.default.{key}" for key in ("identity", "support", "values")
    ]
    other.load_state_dict(state)
    assert torch.equal(other(images()), model(images()))
    with pytest.raises(RuntimeError, match="nnz"):
        dctps.adapt_(small(), 0.06, modules_to_save=["6"]).load_state_dict(state)


def test_dtypes_and_channels_last():
    model = adapted()
    y = model(images())
    torch.testing.assert_close(
        copy.deepcopy(model).double()(images().double()).float(), y, rtol=1e-4, atol=1e-5
    )
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images().to(memory_format=torch.channels_last)), y)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y, rtol=0.1, atol=0.1)


def gradients(model, run):
    model.zero_grad()
    y = run(model, images())
    nn.functional.cross_entropy(y, LABELS).backward()
    return y.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    model = adapted(modules_to_save=["6"])
    y, expected = gradients(model, lambda model, x: model(x))

    def run(model, x):
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    again, found = gradients(model, run)
    assert torch.equal(y, again) and expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(backend):
    model = adapted(modules_to_save=["6"])
    y, expected = gradients(model, lambda model, x: model(x))
    compiled = torch.compile(copy.deepcopy(model), backend=backend)
    again, found = gradients(compiled, lambda model, x: model(x))
    torch.testing.assert_close(y, again)
    for key, grad in expected.items():
        torch.testing.assert_close(grad, found[f"_orig_mod.{key}"], rtol=1e-4, atol=1e-5)
    set_adapter_(compiled, None)
    torch.testing.assert_close(compiled(images()), small()(images()))
    set_adapter_(compiled, "default")
    torch.testing.assert_close(compiled(images()), y)
    merge_adapter_(compiled)
    torch.testing.assert_close(compiled(images()), y)


def test_exported_and_traced():
    model = adapted()
    exported = torch.export.export(model, (images(),)).module()
    with quiet():  # it is deprecated
        traced = torch.jit.trace(model, images())
    for other in (exported, traced):
        torch.testing.assert_close(other(images(2)), model(images(2)))


def test_no_grad_and_inference_mode_give_the_same_bits():
    model = adapted()
    y = model(images())
    with torch.no_grad():
        assert torch.equal(model(images()), y)
    with torch.inference_mode():
        assert torch.equal(model(images()), y)


def test_functional_calls_and_gradients_of_each_sample():
    model = adapted()
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(values, x, label):
        y = functional_call(model, values, (x[None],))
        return nn.functional.cross_entropy(y, label[None])

    each = vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, images(), LABELS)
    for i in range(3):
        model.zero_grad()
        nn.functional.cross_entropy(model(images()[i : i + 1]), LABELS[i : i + 1]).backward()
        for name, grads in each.items():
            torch.testing.assert_close(grads[i], model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)
    # several adapters' values at once
    stacked = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}
    x = images()
    both = vmap(lambda values: functional_call(model, values, (x,)))(stacked)
    torch.testing.assert_close(both[0], model(x), rtol=1e-4, atol=1e-5)


def test_no_dense_sum_is_made():
    """A forward and backward pass through a wide layer allocates less than a tenth of its weight."""
    model = dctps.adapt_(nn.Sequential(nn.Linear(2048, 2048)), 0.001)
    x = torch.randn(4, 2048)
    model(x).sum().backward()
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profile:
        model(x).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest < 2048 * 2048 * 4 / 10


def test_gpt2_with_gradient_checkpointing():
    pytest.importorskip("transformers")
    model = fill(dctps.adapt_(gpt2(), 0.05)).train()
    ids = tokens()

    def grads():
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    expected = grads()
    with quiet():
        model.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(expected, grads(), strict=True))
    assert all(g.abs().sum() > 0 for g in expected)


def test_generation_with_a_cache():
    pytest.importorskip("transformers")
    model = fill(dctps.adapt_(gpt2(), 0.05), std=0.5)
    options = {"max_new_tokens": 4, "do_sample": False}
    apart = model.generate(tokens(1), use_cache=True, **options)
    assert torch.equal(apart, merge_adapter_(model).generate(tokens(1), use_cache=False, **options))
