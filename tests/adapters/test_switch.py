"""Several adapters on one base: switched, merged, disabled and removed without a trace."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dctps
from dctps.adapters import (
    active_adapter,
    disable,
    list_adapters,
    merge_adapter_,
    remove_adapter_,
    set_adapter_,
    unmerge_adapter_,
)
from tests.adapters.networks import fill, gpt2, images, small, tokens, train

SAVED = {"modules_to_save": ["6"]}


def two():
    """A network with two trained adapters, and what it computes with each and with none."""
    net = small()
    expected = {None: net(images())}
    for name, seed in (("first", 1), ("second", 2)):
        dctps.adapt_(net, 0.05, name=name, seed=seed, **(SAVED if name == "first" else {}))
        expected[name] = train(net)(images())
    return net, expected


def test_each_adapter_computes_as_it_did_when_it_was_trained():
    net, expected = two()
    weights = {key: t.clone() for key, t in net.state_dict().items() if key in small().state_dict()}
    assert list_adapters(net) == ["first", "second"] and active_adapter(net) == "second"
    for name in ("first", None, "second", "first", "second", None):
        set_adapter_(net, name)
        assert active_adapter(net) == name
        assert torch.equal(net(images()), expected[name])
        training = {n for n, p in net.named_parameters() if p.requires_grad}
        heads = {"6.weight", "6.bias"} if name == "first" else set()
        assert training == heads | {n for n, _ in net.named_parameters() if f"adapters.{name}." in n}
    set_adapter_(net, "second")
    assert all(
        torch.equal(net.state_dict()[key], tensor) for key, tensor in weights.items() if "running" not in key
    )
    with pytest.raises(ValueError, match="there is no adapter 'third': the network has first, second"):
        set_adapter_(net, "third")


@given(
    st.lists(
        st.sampled_from(["first", "second", "merge", "unmerge", "none", "disable", "to", "copy"]), max_size=12
    )
)
def test_no_order_of_calls_changes_what_an_adapter_computes(calls):
    net, expected = two()
    base = {key: t.clone() for key, t in small().state_dict().items()}
    for call in calls:
        if call in ("first", "second"):
            set_adapter_(net, call)
        elif call == "merge" and active_adapter(net) is not None:
            merge_adapter_(net)
        elif call == "unmerge":
            unmerge_adapter_(net)
        elif call == "none":
            set_adapter_(net, None)
        elif call == "disable":
            with disable(net):
                torch.testing.assert_close(net(images()), expected[None], rtol=0, atol=0)
        elif call == "to":
            net.double().float()
        elif call == "copy":
            net = copy.deepcopy(net)
        torch.testing.assert_close(net(images()), expected[active_adapter(net)], rtol=1e-4, atol=1e-5)
    for name in list_adapters(net):
        remove_adapter_(net, name)
    assert all(torch.equal(tensor, base[key]) for key, tensor in net.state_dict().items())
    assert not any(m._forward_hooks or {"adapters", "versions"} & {*m._modules} for m in net.modules())


def test_switching_a_merged_network_touches_nnz_numbers_of_the_weight():
    net, expected = two()
    merge_adapter_(net)
    torch.testing.assert_close(net(images()), expected["second"])
    pointer, before = net[4].weight.data_ptr(), net[4].weight.detach().clone()
    set_adapter_(net, "first")
    assert net[4].weight.data_ptr() == pointer and net[4].adapters.merged == "first"
    changed = (net[4].weight.detach() != before).reshape(-1).nonzero().squeeze(1)
    supports = torch.cat([net[4].adapters[name].support for name in ("first", "second")]).unique()
    assert set(changed.tolist()) <= set(supports.tolist())
    torch.testing.assert_close(net(images()), expected["first"])


def test_a_merged_network_has_no_state_dict_and_no_file(tmp_path):
    net, _ = two()
    state = net.state_dict()
    merge_adapter_(net)
    with pytest.raises(ValueError, match="'second' is merged, and a file would hold W_0"):
        dctps.save_pretrained(net, tmp_path)
    assert dctps.report(net).disk_bytes is None and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="'second' is merged, and a state dict would hold W_0 \\+ S"):
        net.state_dict()
    with pytest.raises(RuntimeError, match="unmerge_adapter_"):
        net.load_state_dict(state)
    with pytest.raises(ValueError, match="is merged: call unmerge_adapter_"):
        dctps.adapt_(net, 0.1, name="third")
    unmerge_adapter_(net)
    net.load_state_dict(state)


def test_merging_for_good_keeps_the_head_and_the_statistics_of_the_adapter():
    net, expected = two()
    set_adapter_(net, "first")
    plain = dctps.merge_(copy.deepcopy(net))
    torch.testing.assert_close(plain(images()), expected["first"])
    merge_adapter_(net)
    torch.testing.assert_close(dctps.merge_(net)(images()), expected["first"])
    assert set(net.state_dict()) == set(small().state_dict())


def test_with_none_in_use_there_is_nothing_to_merge():
    net, _ = two()
    set_adapter_(net, None)
    with pytest.raises(ValueError, match="no adapter is in use"):
        merge_adapter_(net)
    with pytest.raises(ValueError, match="no adapter 'default'"):
        remove_adapter_(net)


def test_disable_puts_flags_back_after_an_error():
    net, expected = two()
    for p in net.parameters():
        p.requires_grad_(False)
    with pytest.raises(KeyError), disable(net):
        raise KeyError
    assert active_adapter(net) == "second" and not any(p.requires_grad for p in net.parameters())
    assert torch.equal(net(images()), expected["second"])


def test_tied_modules_keep_one_version():
    pytest.importorskip("transformers")
    model = gpt2()
    before = model(tokens()).logits
    dctps.adapt_(model, 0.05, modules_to_save=["wte", "lm_head"])
    fill(model)
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
    after = model(tokens()).logits
    set_adapter_(model, None)
    assert torch.equal(model(tokens()).logits, before)
    set_adapter_(model, "default")
    assert torch.equal(model(tokens()).logits, after)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_half_precision_comes_apart_bit_for_bit():
    net = dctps.adapt_(nn.Sequential(nn.Linear(16, 16)).to(torch.bfloat16), nnz=60)
    weight = net[0].weight.clone()
    fill(net, std=3.0)
    merge_adapter_(net)
    assert not torch.equal(net[0].weight, weight)
    assert torch.equal(unmerge_adapter_(net)[0].weight, weight)
