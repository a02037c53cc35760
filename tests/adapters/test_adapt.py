"""What adapt_ chooses, freezes and refuses."""

import copy

import pytest
import torch
from torch import nn

import dctps
from dctps.adapters import list_adapters
from tests.adapters.networks import LABELS, gpt2, images, small, train


def trained(model):
    return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}


def counts(model):
    return {n.split(".adapters.")[0]: c for n, c in trained(model).items() if ".adapters." in n}


def test_the_network_computes_what_it_did_and_only_s_trains():
    net = small()
    before, weights = net(images()), copy.deepcopy(net.state_dict())
    model = dctps.adapt_(net, 0.05)
    assert model is net and torch.equal(model(images()), before)
    assert set(trained(model)) == {f"{i}.adapters.default.values" for i in (0, 4, 6)}
    assert sum(trained(model).values()) == round(0.05 * (8 * 27 + 16 * 288 + 80))
    train(model)
    assert not torch.equal(model(images()), before)
    after = model.state_dict()
    assert all(
        torch.equal(after[key], weights[key]) for key in weights if "running" not in key and "num" not in key
    )


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, {"0", "4", "6"}),
        ({"target_modules": ["0", "4"]}, {"0", "4"}),
        ({"target_modules": "[46]"}, {"4", "6"}),
        ({"exclude_modules": ["0"]}, {"4", "6"}),
        ({"exclude_modules": "[04]"}, {"6"}),
        ({"modules_to_save": ["6"]}, {"0", "4"}),
    ],
)
def test_which_layers(options, layers):
    assert set(counts(dctps.adapt_(small(), r=1, **options))) == layers


def test_names_are_ends_and_modules_inside_are_left_out():
    net = nn.ModuleDict(
        {"one": nn.ModuleDict({"fc": nn.Linear(4, 4)}), "two": nn.ModuleDict({"fc": nn.Linear(4, 4)})}
    )
    assert set(counts(dctps.adapt_(copy.deepcopy(net), nnz=3, target_modules=["fc"]))) == {"one.fc", "two.fc"}
    assert set(counts(dctps.adapt_(copy.deepcopy(net), nnz=3, target_modules=["one.fc"]))) == {"one.fc"}
    assert set(counts(dctps.adapt_(copy.deepcopy(net), nnz=3, exclude_modules=["one"]))) == {"two.fc"}
    saved = dctps.adapt_(copy.deepcopy(net), nnz=3, modules_to_save=["two"])
    assert set(trained(saved)) == {"one.fc.adapters.default.values", "two.fc.weight", "two.fc.bias"}


def test_numbers_are_exact():
    total = 8 * 27 + 16 * 288 + 80
    for nnz in (0, 1, 7, 1001, total):
        assert sum(counts(dctps.adapt_(small(), nnz=nnz)).values()) == nnz
    assert counts(dctps.adapt_(small(), r=2)) == {"0": 2 * 35, "4": 2 * 304, "6": 2 * 21}
    erk = counts(dctps.adapt_(small(), nnz=400, allocation="erk"))
    assert sum(erk.values()) == 400 and len(set(erk.values())) > 1


def test_gpt2_is_adapted_by_default_but_for_its_tied_head():
    pytest.importorskip("transformers")
    model = dctps.adapt_(gpt2(), 0.02)
    assert {name.split(".", 3)[-1] for name in counts(model)} == {
        "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj",
    }  # fmt: skip
    with pytest.raises(
        ValueError, match="'lm_head' \\(Linear\\), which cannot be adapted: it shares a parameter"
    ):
        dctps.adapt_(gpt2(), 0.02, target_modules=["lm_head"])


@pytest.mark.parametrize("criterion", ["gradient", "magnitude"])
def test_supports_by_score_are_the_largest(criterion):
    net = small()
    weights = [net[i].weight for i in (0, 4, 6)]
    scores = [w.detach().abs() for w in weights]
    if criterion == "gradient":
        loss = nn.functional.cross_entropy(net(images()), LABELS)
        scores = [g.abs() for g in torch.autograd.grad(loss, weights)]
    flat = torch.cat([s.reshape(-1) for s in scores])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[flat.topk(100).indices] = True
    model = dctps.adapt_(net.train(), nnz=100, criterion=criterion, batches=[(images(), LABELS)])
    parts = kept.split([s.numel() for s in scores])
    for i, part in zip((0, 4, 6), parts, strict=True):
        assert torch.equal(model[i].adapters["default"].support, part.nonzero().squeeze(1))
    assert model.training and all(p.grad is None for p in model.parameters())


def test_masks_are_taken_as_they_are():
    net = small()
    masks = {"0": torch.rand(8, 3, 3, 3) < 0.1, "4": torch.rand(16, 288) < 0.1, "6": torch.tensor([3, 1])}
    model = dctps.adapt_(net, criterion=masks)
    assert model[6].adapters["default"].support.tolist() == [1, 3]
    assert torch.equal(model[4].adapters["default"].support, masks["4"].reshape(-1).nonzero().squeeze(1))


def test_the_support_of_a_second_adapter_is_scored_on_the_base():
    first = dctps.adapt_(small(), nnz=50, criterion="gradient", batches=[(images(), LABELS)])
    train(first)
    dctps.adapt_(first, nnz=50, criterion="gradient", batches=[(images(), LABELS)], name="second")
    for i in (0, 4, 6):
        adapters = first[i].adapters
        assert torch.equal(adapters["default"].support, adapters["second"].support)
    assert list_adapters(first) == ["default", "second"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of density, nnz and r"),
        ({"density": 0.1, "nnz": 3}, "give one of density, nnz and r"),
        ({"density": 1.5}, "density must be in \\[0, 1\\]"),
        ({"nnz": 10**6}, "nnz must be in 0..4904"),
        ({"nnz": 0.5}, "nnz must be a whole number"),
        ({"r": 5}, "r=5 asks for 105 weights of layer '6', which has 80"),
        ({"r": 1, "allocation": "epl"}, "leave allocation out"),
        (
            {"density": 0.1, "target_modules": ["conv"]},
            "'conv' is no module of the network. Modules end in 0, 1",
        ),
        ({"density": 0.1, "target_modules": "("}, "is no regular expression"),
        ({"density": 0.1, "target_modules": ["1"]}, "'1' \\(BatchNorm2d\\), which cannot be adapted: only"),
        ({"density": 0.1, "modules_to_save": "6"}, "must be a list of names, got the text '6'"),
        ({"density": 0.1, "modules_to_save": ["head"]}, "'head' is no module"),
        ({"density": 0.1, "exclude_modules": ["0", "4", "6"]}, "has no layer to adapt"),
        ({"density": 0.1, "name": "a.b"}, "text without dots and slashes .*, got 'a.b'"),
        ({"density": 0.1, "name": "keys"}, "got 'keys'"),
        ({"density": 0.1, "criterion": "nonzero"}, "is for pruned networks"),
        ({"density": 0.1, "criterion": "gradient"}, "looks at data: pass batches"),
        ({"density": 0.1, "criterion": "offset-snip"}, "scores a network under an offset"),
        ({"density": 0.1, "criterion": "gradeint"}, "unknown criterion 'gradeint'"),
        (
            {"criterion": {"0": torch.tensor([10**6])}, "target_modules": ["0"]},
            "layer '0': positions must be in",
        ),
    ],
)
def test_what_is_refused_changes_nothing(options, message):
    net = small()
    modules, flags = list(net.modules()), [p.requires_grad for p in net.parameters()]
    with pytest.raises(ValueError, match=message):
        dctps.adapt_(net, **options)
    assert list(net.modules()) == modules and [p.requires_grad for p in net.parameters()] == flags


def test_an_attention_is_put_back_where_a_later_step_is_refused():
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(ValueError, match="give one of"):
        dctps.adapt_(net)
    assert type(net["attention"]) is nn.MultiheadAttention


def test_a_single_layer_and_a_name_that_is_taken():
    with pytest.raises(ValueError, match="put it into nn.Sequential"):
        dctps.adapt_(nn.Linear(3, 3), nnz=1)
    model = dctps.adapt_(small(), nnz=5)
    with pytest.raises(ValueError, match="layer '0' has an adapter 'default' already"):
        dctps.adapt_(model, nnz=5)


def test_a_network_without_weights_is_refused():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="layer '0' is on the meta device: load the pretrained weights"):
        dctps.adapt_(net, nnz=2)


def test_an_optimizer_of_the_frozen_weights_is_noticed():
    net = small()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    dctps.adapt_(net, 0.05)
    with pytest.warns(UserWarning, match="SGD holds 8 parameters .*make the optimizer after adapt_"):
        optimizer.step()


def test_sparsify_leaves_adapted_layers_alone_and_merge_makes_them_plain():
    model = train(dctps.adapt_(small(), nnz=300))
    expected = model(images())
    with pytest.raises(ValueError, match="it carries adapters"):
        dctps.sparsify_(model, 0.1, convert_frozen=True)
    report = dctps.report(model)
    assert report.trainable["values"] == 300 and report.nnz == 300
    plain = dctps.merge_(model)
    assert [type(m) for m in plain.modules()] == [type(m) for m in small().modules()]
    torch.testing.assert_close(plain(images()), expected)
    assert set(plain.state_dict()) == set(small().state_dict())
