"""Folders of PEFT's SHiRA, written and read, against PEFT itself."""

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import dctps
from dctps.adapters import load_adapter_, load_shira_, save_adapter, save_shira
from dctps.checkpoint import CheckpointError
from tests.adapters.networks import fill, quiet

with quiet():
    peft = pytest.importorskip("peft")

FILE = "adapter_model.safetensors"


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(20, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 12, bias=False),
        nn.ReLU(),
        nn.Linear(12, 5),
    )
    with torch.no_grad():
        net(inputs())
    return net.eval()


def inputs(seed=1):
    return torch.randn(9, 20, generator=torch.Generator().manual_seed(seed))


def train(model, rate=0.05):
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    for step in range(3):
        optimizer.zero_grad()
        model(inputs(step)).square().mean().backward()
        optimizer.step()
    return model.eval()


def of_peft(r=2, seed=4, saved=("1", "5")):
    config = peft.ShiraConfig(r=r, target_modules=["0", "3"], modules_to_save=list(saved), random_seed=seed)
    with quiet():
        return train(peft.get_peft_model(network(), config))


def theirs(folder):
    with quiet():
        return peft.PeftModel.from_pretrained(network(), folder).eval()


@given(st.integers(1, 260), st.booleans())
def test_peft_loads_what_was_trained_here(tmp_path_factory, nnz, saves):
    folder = tmp_path_factory.mktemp("shira")
    options = {"modules_to_save": ["5"]} if saves else {"target_modules": ["0", "3"]}
    model = train(fill(dctps.adapt_(network(), nnz=nnz, seed=2, **options)))
    save_shira(model, folder, base_model="somewhere/base")
    loaded = theirs(folder)
    with quiet():
        torch.testing.assert_close(loaded(inputs()), model(inputs()), rtol=1e-5, atol=1e-6)
        for i in (0, 3):  # bit for bit
            layer = loaded.base_model.model[i]
            assert torch.equal(
                layer.get_delta_weight("default").to_dense(), model[i].adapters["default"].to_dense()
            )
            assert torch.equal(layer.base_layer.weight, model[i].weight)
    if saves:
        head = loaded.base_model.model[5].modules_to_save["default"]
        assert torch.equal(head.weight, model[5].weight) and torch.equal(head.bias, model[5].bias)
    assert loaded.peft_config["default"].base_model_name_or_path == "somewhere/base"


@given(st.integers(1, 5), st.integers(0, 99))
def test_what_peft_trained_loads_here_and_goes_back_unchanged(tmp_path_factory, r, seed):
    folder = tmp_path_factory.mktemp("shira")
    model = of_peft(r, seed)
    with quiet():
        model.save_pretrained(folder)
        y = model(inputs())
    own = load_shira_(network(), folder)
    torch.testing.assert_close(own(inputs()), y, rtol=1e-5, atol=1e-6)
    before = load_file(folder / FILE)
    save_shira(own, folder / "again")
    after = load_file(folder / "again" / FILE)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key
    config = json.loads((folder / "again" / "adapter_config.json").read_text())
    assert config["r"] == r and config["modules_to_save"] == ["1", "5"]
    # in a file of its own it is the same adapter
    save_adapter(own, folder)
    assert torch.equal(load_adapter_(network(), folder)(inputs()), own(inputs()))


def test_names_that_are_ends_of_others_are_written_as_an_expression(tmp_path):
    net = nn.ModuleDict({"fc": nn.Linear(4, 4), "in": nn.ModuleDict({"fc": nn.Linear(4, 4)})})
    model = fill(dctps.adapt_(copy.deepcopy(net), r=1, target_modules="fc"))
    save_shira(model, tmp_path)
    with quiet():
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(net), tmp_path).base_model.model
        assert type(loaded["in"]["fc"]) is nn.Linear
        assert torch.equal(
            loaded["fc"].get_delta_weight("default").to_dense(), model["fc"].adapters["default"].to_dense()
        )


def test_statistics_that_have_changed_go_with_the_folder(tmp_path):
    model = train(dctps.adapt_(network(), r=1, target_modules=["0"]))
    save_shira(model, tmp_path)
    with quiet():
        torch.testing.assert_close(theirs(tmp_path)(inputs()), model(inputs()), rtol=1e-5, atol=1e-6)


def test_what_peft_could_not_hold_is_refused(tmp_path):
    conv = dctps.adapt_(nn.Sequential(nn.Conv2d(3, 3, 3)), r=1)
    with pytest.raises(ValueError, match="layer '0' is a Conv2d, and PEFT's SHiRA has nn.Linear alone"):
        save_shira(conv, tmp_path)
    with pytest.raises(ValueError, match=r"layer '0' would have r \(m \+ n\) = .* use save_adapter"):
        save_shira(dctps.adapt_(network(), 1.0), tmp_path)
    assert not list(tmp_path.iterdir())


def damaged(folder, change):
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


def rename(tensors):
    tensors["base_model.model.9.shira_weight"] = tensors.pop("base_model.model.0.shira_weight")


def far(tensors):
    tensors["base_model.model.0.shira_indices"][0, 0] = 99


def twice(tensors):
    indices = tensors["base_model.model.0.shira_indices"]
    indices[:, 1] = indices[:, 0]


def wide(tensors):
    tensors["base_model.model.5.weight"] = torch.zeros(6, 12)


def foreign(tensors):
    tensors["weight"] = torch.zeros(2)


def short(tensors):
    key = "base_model.model.0.shira_weight"
    tensors[key] = tensors[key][1:].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "both weights and indices"),
        (far, "indices outside of 16 x 20"),
        (twice, "or one twice"),
        (wide, r"'5.weight' has the shape \(6, 12\)"),
        (foreign, "has the tensor 'weight'"),
        (short, "values at"),
    ],
)
def test_damaged_folders_are_refused_and_change_nothing(tmp_path, change, message):
    with quiet():
        of_peft().save_pretrained(tmp_path)
    damaged(tmp_path, change)
    net = network()
    names = list(net.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_shira_(net, tmp_path)
    assert list(net.state_dict()) == names and all(p.requires_grad for p in net.parameters())


def test_folders_of_other_kinds(tmp_path):
    with pytest.raises(CheckpointError, match="adapter_config.json cannot be read"):
        load_shira_(network(), tmp_path)
    config = peft.LoraConfig(r=1, target_modules=["0"])
    with quiet():
        peft.get_peft_model(network(), config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="of the method 'LORA', and only SHIRA"):
        load_shira_(network(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is no PEFT configuration"):
        load_shira_(network(), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "SHIRA"}')
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        load_shira_(network(), tmp_path)


def test_the_names_of_another_network(tmp_path):
    with quiet():
        of_peft(saved=()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="adapts the linear layer '3', and this one has a ReLU there"):
        load_shira_(nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.ReLU(), nn.ReLU()), tmp_path)
