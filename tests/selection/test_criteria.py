"""Every criterion against a second computation, and what each of them promises."""

import copy
import warnings
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.support import naive_selection as naive
from torch import nn

import dctps
from dctps import criteria, sparsify_
from dctps.selection.weights import choose

CASES = {
    "snip": (criteria.snip, naive.snip),
    "snip-eval": (partial(criteria.snip, mode="eval"), partial(naive.snip, train=False)),
    "grasp": (criteria.grasp, naive.grasp),
    "grasp-eval": (partial(criteria.grasp, mode="eval"), partial(naive.grasp, train=False)),
    "force": (partial(criteria.force, steps=7), partial(naive.force, steps=7)),
    "force-eval": (
        partial(criteria.force, steps=5, mode="eval"),
        partial(naive.force, steps=5, train=False),
    ),
    "iter-snip": (partial(criteria.iter_snip, steps=7), partial(naive.force, steps=7, returning=False)),
    "synflow": (partial(criteria.synflow, rounds=11), partial(naive.synflow, rounds=11)),
}
SCORED = ["magnitude", "snip", "grasp", "force", "iter-snip", "synflow"]


def layers_of(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    density=st.sampled_from([0.03, 0.1, 0.3, 0.8]),
    batches=st.integers(1, 3),
    allocation=st.sampled_from(["global", "epl", "erk"]),
)
def test_supports_are_those_of_a_second_computation(case, seed, density, batches, allocation):
    criterion, by_hand = CASES[case]
    model, data = naive.Network(seed), naive.data(seed, batches)
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers_of(model).items()}
    keep = round(density * sum(layer.weight.numel() for layer in layers_of(model).values()))
    if allocation != "global":
        keep = dctps.selection.allocate(allocation, shapes, keep)
    try:
        expected = by_hand(model, data, keep)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a lost signal is tested below
            found = choose(criterion, model, layers_of(model), None, data, keep)
    except naive.TieError:
        assume(False)
    except ValueError as error:
        assert "scores are not zero" in str(error)  # dead units
        assume(False)
    for name in naive.LAYERS:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("keep", [24, 200])
@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("force", partial(naive.force, steps=60)),
        ("iter-snip", partial(naive.force, steps=60, returning=False)),
        ("synflow", partial(naive.synflow, rounds=100)),
    ],
)
@pytest.mark.filterwarnings("ignore:after the last step")
def test_the_schedules_have_their_usual_lengths(name, by_hand, keep):
    compared = 0
    for seed in range(8):
        model, data = naive.Network(seed), naive.data(seed, 1)
        try:
            expected = by_hand(model, data, keep)
        except naive.TieError:
            continue
        found = choose(name, model, layers_of(model), None, data, keep)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        compared += 1
        if compared == 2:
            return
    pytest.fail("ties everywhere")


def test_the_authors_loss_of_force():
    model, data = naive.Network(3), naive.data(3, 2)
    expected = naive.force(model, data, 40, steps=5, nll=True)
    found = choose(
        partial(criteria.force, steps=5), model, layers_of(model), criteria.nll_on_logits, data, 40
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    other = choose(partial(criteria.force, steps=5), model, layers_of(model), None, data, 40)
    assert any(not torch.equal(found[name], other[name]) for name in expected)


def trace(criterion, model, data, keep):
    """The masks of every step."""
    seen = []

    def watched(model, layers, loss, batches):
        rounds = criterion(model, layers, loss, batches)
        scores, progress = next(rounds)
        while True:
            kept = yield scores, progress
            seen.append(kept)
            scores, progress = rounds.send(kept)

    last = choose(watched, model, layers_of(model), None, data, keep)
    return [*seen, last]


def test_weights_return_in_force_and_never_in_iter_snip_or_synflow():
    model, data = naive.Network(1), naive.data(1, 2)
    back = {}
    for name, criterion in (
        ("force", partial(criteria.force, steps=20)),
        ("iter-snip", partial(criteria.iter_snip, steps=20)),
        ("synflow", partial(criteria.synflow, rounds=20)),
    ):
        masks = trace(criterion, model, data, 30)
        counts = [sum(int(m.sum()) for m in step.values()) for step in masks]
        size = sum(m.numel() for m in masks[0].values())
        assert counts == [round(size * (30 / size) ** (t / 20)) for t in range(1, 21)]
        back[name] = sum(
            int((after[n] & ~before[n]).sum()) for before, after in pairwise(masks) for n in before
        )
    assert back["force"] > 0
    assert back["iter-snip"] == back["synflow"] == 0


def test_grasp_lets_the_gradient_norm_grow():
    gains = []
    for seed in range(6):
        model, data = naive.Network(seed), naive.data(seed, 1)
        w, c = naive.weights(model), naive.constants(model)
        loss = naive.loss_of(c, data, True, temperature=200.0)
        size = sum(t.numel() for t in w.values())

        def norm(masks, step):
            g = torch.func.grad(loss)({n: w[n] * (1 - step * ~masks[n]) for n in w})
            return sum(float((t**2).sum()) for t in g.values())

        def opposite(model, layers, loss, batches):
            return {n: -s for n, s in criteria.grasp(model, layers, loss, batches).items()}

        kept = choose("grasp", model, layers_of(model), None, data, size - 5)
        wrong = choose(opposite, model, layers_of(model), None, data, size - 5)
        dense = norm(kept, 0.0)
        assert norm(kept, 1e-4) > dense > norm(wrong, 1e-4)
        gains.append(norm(kept, 1.0) / norm(wrong, 1.0))
    assert min(gains) > 1


def chain(widths, *, bias=False):
    parts = []
    for n, m in pairwise(widths):
        parts += [nn.Linear(n, m, bias=bias), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def test_synflow_conserves_flow_and_empties_no_layer_of_a_chain():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        *chain([8 * 16, 30, 30, 30, 10]),
    )
    layers = layers_of(model)
    assert min(layer.weight.numel() for layer in layers.values()) >= 10
    sums = []

    def watched(model, layers, loss, batches):
        rounds = criteria.synflow(model, layers, loss, batches)
        scores, progress = next(rounds)
        while True:
            assert {score.dtype for score in scores.values()} == {torch.float64}
            sums.append([float(s[s > -torch.inf].sum()) for s in scores.values()])
            scores, progress = rounds.send((yield scores, progress))

    kept = choose(watched, model, layers, None, [torch.ones(1, 3, 8, 8)], 2 * len(layers))
    assert len(sums) == 100
    for step in sums:
        assert max(step) - min(step) <= 1e-9 * max(step)
    assert all(mask.any() for mask in kept.values())


# On narrow chains the last weights of a budget may have lost their connection: a warning says so.
@pytest.mark.filterwarnings("ignore:after the last step of synflow:UserWarning")
@example(widths=[9, 4, 4], each=10, seed=0)
@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(4, 12), min_size=3, max_size=8),
    each=st.integers(10, 12),
    seed=st.integers(0, 99),
)
def test_synflow_empties_no_layer_with_ten_weights_for_each(widths, each, seed):
    torch.manual_seed(seed)
    model = chain(widths)
    layers = layers_of(model)
    keep = each * len(layers)
    kept = choose("synflow", model, layers, None, [torch.ones(1, widths[0])], keep)
    assert sum(int(mask.sum()) for mask in kept.values()) == keep
    assert all(mask.any() for mask in kept.values())


def test_synflow_is_finite_where_float32_overflows_and_leaves_every_bit():
    torch.manual_seed(0)
    model = chain([64] * 101)
    with torch.no_grad():
        flow = copy.deepcopy(model)
        for p in flow.parameters():
            p.abs_()
        assert flow(torch.ones(1, 64)).isinf().all()
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    kept = choose(
        partial(criteria.synflow, rounds=30), model, layers_of(model), None, [torch.ones(1, 64)], 5000
    )
    assert sum(int(mask.sum()) for mask in kept.values()) == 5000
    assert all(mask.any() for mask in kept.values())
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32 and p.data_ptr() == before[name][0]
        assert torch.equal(p, before[name][1])


def snapshot(model):
    return (
        {
            n: (p.data_ptr(), p.dtype, p.detach().clone(), p.requires_grad)
            for n, p in model.named_parameters()
        },
        {n: None if p.grad is None else (id(p.grad), p.grad.clone()) for n, p in model.named_parameters()},
        {n: (id(b), b.clone()) for n, b in model.named_buffers()},
        {n: m.training for n, m in model.named_modules()},
        {n: len(m._forward_hooks) for n, m in model.named_modules()},
        torch.get_rng_state(),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.filterwarnings("ignore:after the last step")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("criterion", SCORED)
def test_the_model_is_afterwards_what_it_was(criterion, fails, dtype):
    model = naive.Network(0).to(dtype)
    model.norm2.eval()
    model.hidden.requires_grad_(False)
    data = [(x.to(dtype), y) for x, y in naive.data(0, 2)]
    criteria.cross_entropy(model, data[0]).backward()
    if fails:
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    before = snapshot(model)

    def ask():
        keep = dict.fromkeys(naive.LAYERS, 30 if fails else 3)
        return choose(criterion, model, layers_of(model), None, data, keep)

    if fails:
        with pytest.raises(ValueError, match="scores are zero|not zero"):
            ask()
    else:
        first = ask()
    assert same(snapshot(model), before)
    if not fails:
        torch.rand(5)
        assert same(ask(), first)


def test_dropout_is_off_and_the_users_criterion_may_leave_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    data = [(torch.randn(10, 6), torch.randint(3, (10,)))]
    plain = nn.Sequential(model[0], model[2])
    a = choose("snip", model, layers_of(model), None, data, 20)
    b = choose("snip", plain, layers_of(plain), None, data, 20)
    assert torch.equal(a["2"], b["1"])

    def noisy(model, layers, loss, batches):
        for batch in batches:
            criteria.cross_entropy(model, batch).backward()
        return {name: layer.weight.grad.abs() + torch.rand(()) for name, layer in layers.items()}

    before = snapshot(model)
    choose(noisy, model, layers_of(model), None, data, 20)
    assert same(snapshot(model), before)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "force", "iter-snip", "synflow"])
def test_what_starts_at_zero_is_refused_and_the_message_says_what_to_use(criterion):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    for layer in layers_of(model).values() if criterion == "grasp" else [model[2]]:
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
    ask = partial(choose, "snip", model, layers_of(model), None, data)
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
        kept = choose(fading, model, layers_of(model), None, None, 3)
    assert kept["0"].flatten().nonzero().flatten().tolist() == [2, 9, 10]


def test_force_takes_new_data_from_a_loader_in_each_step():
    class Loader:
        passes = 0

        def __iter__(self):
            Loader.passes += 1
            return iter(naive.data(Loader.passes, 1))

    model = naive.Network(0)
    choose(partial(criteria.force, steps=4), model, layers_of(model), None, Loader(), 100)
    assert Loader.passes == 4
    choose("grasp", model, layers_of(model), None, Loader(), 30)
    assert Loader.passes == 5
    # An iterator is kept, so that the later steps have data too.
    three = partial(criteria.force, steps=3)
    once = choose(three, model, layers_of(model), None, iter(naive.data(5, 2)), 100)
    assert same(once, choose(three, model, layers_of(model), None, naive.data(5, 2), 100))


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


def test_a_criterion_gives_another_its_allocation():
    data = naive.data(0, 1)
    scored = sparsify_(naive.Network(0), 0.1, offset="zero", criterion="synflow", batches=data)
    random = sparsify_(naive.Network(0), 0.1, allocation="synflow", batches=iter(data), seed=3)
    drawn = sparsify_(
        naive.Network(0), 0.1, allocation={n: scored.get_submodule(n).nnz for n in naive.LAYERS}, seed=3
    )
    snipped = sparsify_(naive.Network(0), 0.1, allocation="synflow", criterion="snip", batches=iter(data))
    for name in naive.LAYERS:
        layer = random.get_submodule(name)
        assert layer.nnz == scored.get_submodule(name).nnz == snipped.get_submodule(name).nnz
        assert torch.equal(layer.support, drawn.get_submodule(name).support)
    assert any(
        not torch.equal(random.get_submodule(n).support, scored.get_submodule(n).support)
        for n in naive.LAYERS
    )
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="'global' is a ranking .* 'random' ranks nothing: choose 'uniform'"):
        sparsify_(meta, 0.5, allocation="global")
    with pytest.raises(ValueError, match="allocation 'magnitude' needs weights"):
        sparsify_(meta, 0.5, allocation="magnitude")
