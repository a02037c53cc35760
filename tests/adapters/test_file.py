"""An adapter alone in a file."""

import copy
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dctps
from dctps.adapters import (
    adapter_state,
    disable,
    load_adapter_,
    merge_adapter_,
    remove_adapter_,
    save_adapter,
    set_adapter_,
)
from dctps.checkpoint import CheckpointError
from tests.adapters.networks import LABELS, fill, gpt2, images, small, tokens, train

FILE = "adapter.safetensors"


def adapted(**options):
    return train(dctps.adapt_(small(), 0.05, modules_to_save=["6"], **options))


@pytest.mark.parametrize("criterion", ["random", "gradient"])
def test_what_was_trained_comes_back_bit_for_bit(tmp_path, criterion):
    model = adapted(criterion=criterion, batches=[(images(), LABELS)], seed=7)
    y = model(images())
    save_adapter(model, tmp_path / "new" / "folder")
    other = load_adapter_(small(), tmp_path / "new" / "folder")
    assert torch.equal(other(images()), y)
    assert [n for n, p in other.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    with disable(other):
        assert torch.equal(other(images()), small()(images()))
    state, again = adapter_state(model), adapter_state(other)
    assert list(state) == list(again) and all(torch.equal(state[key], again[key]) for key in state)
    # it trains on as the first one does
    assert torch.equal(train(other)(images()), train(model)(images()))
    save_adapter(model, tmp_path / "a")
    save_adapter(other, tmp_path / "b")
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_a_merged_adapter_and_one_that_is_not_in_use_are_saved_alike(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path / "plain")
    merge_adapter_(model)
    save_adapter(model, tmp_path / "merged")
    dctps_set = dctps.adapt_(dctps.adapters.unmerge_adapter_(model), 0.1, name="second")
    save_adapter(dctps_set, tmp_path / "not-in-use", "default")
    files = {(tmp_path / name / FILE).read_bytes() for name in ("plain", "merged", "not-in-use")}
    assert len(files) == 1


def test_two_files_on_one_base(tmp_path):
    first, second = adapted(seed=1), adapted(seed=2)
    save_adapter(first, tmp_path / "1")
    save_adapter(second, tmp_path / "2", values_dtype=torch.float64)
    net = load_adapter_(load_adapter_(small(), tmp_path / "1", "one"), tmp_path / "2", "two")
    assert torch.equal(net(images()), second(images()))
    assert torch.equal(set_adapter_(net, "one")(images()), first(images()))
    remove_adapter_(net, "two")
    assert torch.equal(net(images()), first(images()))


@given(nnz=st.integers(0, 200), seed=st.integers(0, 10**6), half=st.booleans())
def test_bytes_of_a_random_support_are_those_of_its_values(tmp_path_factory, nnz, seed, half):
    folder = tmp_path_factory.mktemp("adapter")
    net = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
    model = fill(dctps.adapt_(copy.deepcopy(net), nnz=nnz, seed=seed))
    save_adapter(model, folder, values_dtype=torch.float16 if half else None)
    size = (folder / FILE).stat().st_size
    assert size <= (2 if half else 4) * nnz + 1100
    loaded = load_adapter_(copy.deepcopy(net), folder)
    for i in (0, 2):
        own, other = model[i].adapters["default"], loaded[i].adapters["default"]
        assert torch.equal(own.support, other.support)
        assert torch.equal(own.values.half().float() if half else own.values, other.values)
    shutil.rmtree(folder)


def test_convolutions_transposed_layers_and_attention(tmp_path):
    pytest.importorskip("transformers")
    model = fill(dctps.adapt_(gpt2(), 0.05))
    save_adapter(model, tmp_path / "gpt2")
    assert torch.equal(load_adapter_(gpt2(), tmp_path / "gpt2")(tokens()).logits, model(tokens()).logits)

    net = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "c": nn.Conv1d(4, 4, 3, groups=2)})
    one = fill(dctps.adapt_(copy.deepcopy(net), 0.2))
    save_adapter(one, tmp_path / "more")
    two = load_adapter_(copy.deepcopy(net), tmp_path / "more")
    x, z = torch.randn(5, 2, 8), torch.randn(2, 4, 9)
    assert torch.equal(one["a"](x, x, x)[0], two["a"](x, x, x)[0])
    assert torch.equal(one["c"](z), two["c"](z))


def test_another_base_is_refused_and_left_alone(tmp_path):
    save_adapter(adapted(), tmp_path)
    net = small(seed=1)
    state = {key: t.clone() for key, t in net.state_dict().items()}
    with pytest.raises(CheckpointError, match="was trained on other weights .* pass check_base=False"):
        load_adapter_(net, tmp_path)
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(t, state[key]) for key, t in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())
    load_adapter_(net, tmp_path, check_base=False)
    halves = small().to(torch.bfloat16)
    assert load_adapter_(halves, tmp_path, check_base=False)(images().bfloat16()).dtype == torch.bfloat16


def other_shape():
    net = small()
    net[4] = nn.Linear(288, 17)
    return net


def other_kind():
    net = small()
    net[4] = nn.Identity()
    return net


def without_head():
    return small()[:6]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (other_shape, "layer '4' has shape \\(16, 288\\), groups 1 .* and \\(17, 288\\)"),
        (other_kind, "it adapts '4', and this one has a Identity there"),
        (without_head, "it has '6.(weight|bias)', which is not here"),
    ],
)
def test_another_network_is_refused(tmp_path, build, message):
    save_adapter(adapted(), tmp_path)
    net = build()
    modules = list(net.modules())
    with pytest.raises(CheckpointError, match=message):
        load_adapter_(net, tmp_path)
    assert list(net.modules()) == modules


def test_files_that_are_no_adapters(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_adapter_(small(), tmp_path)
    model = adapted()
    save_adapter(model, tmp_path)
    content = (tmp_path / FILE).read_bytes()
    for at in range(0, len(content), 97):
        (tmp_path / FILE).write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        with pytest.raises(CheckpointError):
            load_adapter_(small(), tmp_path)
    dctps.save_pretrained(dctps.sparsify_(small(), 0.1), tmp_path / "network")
    (tmp_path / "network" / "model.safetensors").rename(tmp_path / FILE)
    with pytest.raises(CheckpointError, match="is a network and no adapter"):
        load_adapter_(small(), tmp_path)


def test_a_file_of_the_whole_network_holds_its_adapters(tmp_path):
    model = dctps.adapt_(adapted(), 0.02, name="second", seed=9)
    fill(model)
    dctps.save_pretrained(model, tmp_path)
    alike = dctps.adapt_(dctps.adapt_(small(1), 0.05, modules_to_save=["6"]), 0.02, name="second", seed=9)
    loaded = dctps.load_pretrained_(alike, tmp_path)
    for name in ("second", "default", None):
        assert torch.equal(set_adapter_(loaded, name)(images()), set_adapter_(model, name)(images()))


def test_names(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        load_adapter_(model, tmp_path)
    with pytest.raises(ValueError, match="there is no adapter 'x'"):
        save_adapter(model, tmp_path, "x")
    with pytest.raises(ValueError, match="no adapter is in use"):
        save_adapter(set_adapter_(model, None), tmp_path)
