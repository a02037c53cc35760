"""What a criterion gets by default, and errors that say what was really wrong with its scores."""

import inspect
from functools import partial

import pytest
import torch
from tests.support import naive_selection as naive
from torch import nn

import dctps
from dctps import criteria, sparsify_
from dctps.selection.criteria.registry import CRITERIA, register_criterion
from dctps.selection.weights import choose

DATA = [(torch.randn(8, 20), torch.randint(3, (8,)))]
ROUNDS = ("force", "iter-snip", "synflow")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))


def supports(model):
    return {name: m.support.tolist() for name, m in model.named_modules() if isinstance(m, dctps.DpSLinear)}


def gradient(model, layers, loss, batches):
    for batch in batches:
        loss(model, batch).backward()
    return {name: layer.weight.grad.abs() for name, layer in layers.items()}


def rounds(model, layers, loss, batches):
    for step in (1, 2):
        loss(model, next(iter(batches))).backward()
        yield {name: layer.weight.grad.abs() for name, layer in layers.items()}, step / 2


@pytest.mark.parametrize(
    "criterion", [gradient, rounds, "snip", "grasp", "force", "iter-snip", "offset-snip"]
)
def test_the_loss_is_the_cross_entropy(criterion):
    model = network()
    found = sparsify_(network(), 0.1, criterion=criterion, batches=DATA)
    given = sparsify_(network(), 0.1, criterion=criterion, batches=DATA, loss=criteria.cross_entropy)
    assert supports(found) == supports(given)
    if criterion is gradient:
        nn.functional.cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()
        scores = torch.cat([model[i].weight.grad.abs().flatten() for i in (0, 2)])
        kept = scores.topk(round(0.1 * len(scores))).indices.sort().values.tolist()
        assert supports(found) == {
            "0": [k for k in kept if k < 600], "2": [k - 600 for k in kept if k >= 600]
        }  # fmt: skip
        allocated = sparsify_(network(), 0.1, criterion=criterion, allocation="epl", batches=iter(DATA))
        assert {len(s) for s in supports(allocated).values()} == {34, 35}


@pytest.mark.parametrize("criterion", [gradient, rounds])
def test_no_batches(criterion):
    with pytest.raises(ValueError, match=f"criterion '{criterion.__name__}' looks at data: pass batches="):
        sparsify_(network(), 0.1, criterion=criterion)
    for called in (partial(criteria.snip), criteria.force, criteria.offset_gradient):
        with pytest.raises(ValueError, match="looks at data: pass batches="):
            sparsify_(network(), 0.1, criterion=called)


def scores_with(change):
    """A criterion whose scores of layer "2" are changed."""

    def once(model, layers, loss, batches):
        scores = {name: layer.weight.detach().abs() for name, layer in layers.items()}
        return scores | {"2": change(scores["2"].clone())}

    def twice(model, layers, loss, batches):
        good = {name: layer.weight.detach().abs() for name, layer in layers.items()}
        yield good, 0.5
        yield good | {"2": change(good["2"].clone())}, 1.0

    return once, twice


def put(value):
    def change(scores):
        scores[1, 2:4] = value
        return scores

    return change


WRONG = {
    "nan": (put(torch.nan), "layer '2' are not finite: 2 of 90 are nan, 0 are infinite"),
    "infinite": (put(torch.inf), "layer '2' are not finite: 0 of 90 are nan, 2 are infinite"),
    "all nan": (lambda s: s * torch.nan, "layer '2' are not finite: 90 of 90 are nan"),
    "none": (lambda s: None, "layer '2' are None: give a tensor of the weight's shape"),
    "list": (lambda s: s.tolist(), "layer '2' are a list: give a tensor"),
    "array": (lambda s: s.numpy(), "layer '2' are a ndarray: give a tensor"),
    "shape": (lambda s: s.T, r"layer '2' have shape \(30, 3\), and its weight \(3, 30\)"),
    "flat": (lambda s: s.flatten(), r"layer '2' have shape \(90,\), and its weight \(3, 30\)"),
    "complex": (lambda s: s + 1j, "layer '2' are torch.complex64, .*: .abs.. makes real numbers of them"),
    "integer": (lambda s: s.long(), "layer '2' are torch.int64, .*: .float.. converts them"),
    "bool": (lambda s: s > 0, "layer '2' are torch.bool, .*: .float.. converts them"),
    "device": (lambda s: s.to("meta"), "layer '2' are on meta, and its weight on cpu"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("allocation", [None, "epl"])
def test_wrong_scores_are_named(wrong, allocation):
    change, message = WRONG[wrong]
    for criterion in scores_with(change):
        model = network()
        before = {name: p.data_ptr() for name, p in model.named_parameters()}
        with pytest.raises(ValueError, match=f"criterion '{criterion.__name__}': the scores of {message}"):
            sparsify_(model, 0.1, criterion=criterion, allocation=allocation)
        assert before == {name: p.data_ptr() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"returned None: it must return \{layer: scores\}"),
        (torch.ones(3), r"returned a Tensor: it must return"),
        ({}, r"must score each of the layers: missing \['0', '2'\], not layers \[\]"),
        ({"0": torch.ones(30, 20)}, r"missing \['2'\], not layers \[\]"),
        ({"0": 1, "2": 1, "head": 1}, r"missing \[\], not layers \['head'\]"),
    ],
)
def test_what_is_no_mapping_of_all_layers_is_named(returned, message):
    for criterion in (lambda *_: returned, lambda *_: (yield returned, 1.0)):
        with pytest.raises(ValueError, match=message):
            sparsify_(network(), 0.1, criterion=criterion)


def test_rounds_that_do_not_end_as_they_must():
    def good(layers):
        return {name: layer.weight.detach().abs() for name, layer in layers.items()}

    def short(model, layers, loss, batches):
        yield good(layers), 0.5

    def unpaired(model, layers, loss, batches):
        yield good(layers)

    def late(model, layers, loss, batches):
        yield good(layers), 0

    for criterion, message in (
        (short, "'short' ended before its progress was 1"),
        (unpaired, r"'unpaired' must yield \(scores, progress\), got a dict"),
        (late, r"the progress of criterion 'late' must be in \(0, 1\], got 0.0"),
        (3, r"a criterion is a name, a function \(model, layers, loss, batches\), or masks by layer, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsify_(network(), 0.1, criterion=criterion)
    for name in ROUNDS:
        option = "rounds" if name == "synflow" else "steps"
        with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
            sparsify_(network(), 0.1, criterion=partial(CRITERIA[name], **{option: 0}), batches=DATA)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "force", "synflow", "offset-snip", "offset-gradient"])
def test_nan_in_the_data_or_the_weights_is_not_called_zero(criterion):
    model = network()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    data = [(x * torch.nan, y) for x, y in DATA] if criterion.startswith("offset") else DATA
    with pytest.raises(ValueError, match="are not finite: .* are nan") as error:
        sparsify_(model, 0.1, criterion=criterion, batches=data)
    assert "Fixup" not in str(error.value)


def test_criteria_of_the_converted_network_are_like_the_rest():
    signatures = {tuple(inspect.signature(function).parameters)[:4] for function in CRITERIA.values()}
    assert signatures == {("model", "layers", "loss", "batches")}
    assert {"offset-snip", "offset-gradient"} <= set(CRITERIA)
    by_name = sparsify_(network(), 0.1, criterion="offset-snip", batches=DATA)
    by_function = sparsify_(
        network(), 0.1, criterion=partial(criteria.offset_snip, mode="train"), batches=DATA
    )
    assert supports(by_name) == supports(by_function)
    allocated = sparsify_(network(), 0.1, allocation="offset-snip", batches=DATA)
    assert [len(s) for s in supports(allocated).values()] == [len(s) for s in supports(by_name).values()]


@pytest.fixture
def criterion_of_ones_own():
    @register_criterion("own-offset-snip", on_converted=True)
    def own(model, layers, loss, batches):
        """offset-snip by whole tensors: the gradient in each layer's W, through a copy with W as a leaf."""
        weights = {name: layer.to_dense().detach().requires_grad_() for name, layer in layers.items()}
        plain = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
        biases = {f"{name}.bias": layer.bias for name, layer in layers.items()}
        for batch in batches:
            state = {f"{name}.weight": w for name, w in weights.items()} | biases
            loss(lambda x, s=state: torch.func.functional_call(plain, s, (x,)), batch).backward()
        return {name: (w * w.grad).abs() for name, w in weights.items()}

    yield "own-offset-snip"
    del CRITERIA["own-offset-snip"]


@pytest.mark.parametrize("allocation", [None, "epl"])
def test_a_third_one_is_registered_and_used_by_name(criterion_of_ones_own, allocation):
    ours = sparsify_(network(), 0.1, criterion="offset-snip", batches=DATA, allocation=allocation)
    own = sparsify_(network(), 0.1, criterion=criterion_of_ones_own, batches=DATA, allocation=allocation)
    assert supports(own) == supports(ours)
    with pytest.raises(ValueError, match="which is 0 under the offset 'zero'"):
        sparsify_(network(), 0.1, criterion=criterion_of_ones_own, batches=DATA, offset="zero")


def test_blocks_that_do_not_cover_a_layer():
    @register_criterion("blocks", on_converted=True)
    def blocks(model, layers, loss, batches):
        return {name: iter([torch.ones(7), torch.rand(11)]) for name in layers}

    try:
        with pytest.raises(ValueError, match="criterion 'blocks' gave 18 scores for 600 weights of '0'"):
            sparsify_(network(), 0.1, criterion="blocks")
    finally:
        del CRITERIA["blocks"]


@pytest.mark.parametrize("criterion", ["snip", "grasp", "force", "iter-snip", "synflow"])
def test_what_starts_at_zero_is_refused_and_the_message_says_what_to_use(criterion):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    for layer in naive.layers_of(model).values() if criterion == "grasp" else [model[2]]:
        nn.init.zeros_(layer.weight)  # GraSP's Hessian still ties the two layers, as long as one is not zero
    data = [(torch.randn(10, 6), torch.randint(3, (10,)))]
    with pytest.raises(
        ValueError, match=rf"criterion '{criterion}' cannot rank this network: all 72 .*'erk'"
    ):
        sparsify_(model, 0.1, offset="zero", criterion=criterion, batches=data)
    assert type(model[0]) is nn.Linear


def test_scores_that_are_partly_zero():
    model = nn.Sequential(nn.Linear(10, 4, bias=False), nn.Linear(4, 2, bias=False))
    x = torch.randn(20, 10)
    x[:, 5:] = 0  # inputs that are never there: 20 scores of 48 are zero
    data = [(x, torch.randint(2, (20,)))]
    ask = partial(choose, "snip", model, naive.layers_of(model), None, data)
    assert int(ask(28)["0"].sum()) == 20
    with pytest.raises(ValueError, match="cannot choose 29 weights of this network: only 28 of 48 scores"):
        ask(29)
    with pytest.raises(ValueError, match="cannot choose 21 weights of layer '0': only 20 of 40 scores"):
        ask({"0": 21, "1": 3})
    assert all(mask.all() for mask in ask(48).values())  # nothing to rank
    assert not any(mask.any() for mask in ask(0).values())


def test_a_schedule_that_loses_the_signal_goes_by_its_last_ranking():
    def fading(model, layers, loss, batches):
        early = torch.arange(12.0)  # cannot rank the first, and needs not
        yield {"0": early.view(3, 4)}, 0.25
        early[11] = -torch.inf  # never again
        late = torch.where(early == 2, 5.0, 0.0)
        for step in range(2, 5):
            yield {"0": torch.where(early == -torch.inf, early, late).view(3, 4)}, step / 4

    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.warns(UserWarning, match="last step of fading: .* only 1 of 12 scores"):
        kept = choose(fading, model, naive.layers_of(model), None, None, 3)
    assert kept["0"].flatten().nonzero().flatten().tolist() == [2, 9, 10]


@pytest.mark.parametrize(
    ("criterion", "batches", "message"),
    [
        ("snip", None, r"'snip' looks at data: pass batches=\[\(inputs, labels\)"),
        ("force", [], "batches are empty"),
        ("grasp", [], "batches are empty"),
        ("synflow", [], "shape of its input from the first batch"),
        ("synflow", [torch.ones(1, dtype=torch.int64)], "floating-point"),
        (partial(criteria.snip, mode="test"), [1], 'mode must be "train" or "eval"'),
        (partial(criteria.grasp, temperature=0), [1], "temperature must be above 0"),
        ("snp", None, "unknown criterion 'snp': did you mean 'snip'"),
    ],
)
def test_errors_say_what_to_pass(criterion, batches, message):
    model = naive.Network(0)
    with pytest.raises(ValueError, match=message):
        sparsify_(model, 0.1, criterion=criterion, batches=batches)
    with pytest.raises(ValueError, match="must return one number as a tensor, got a tensor of shape"):
        sparsify_(model, 0.1, criterion="snip", batches=[1], loss=lambda model, batch: torch.ones(3))
