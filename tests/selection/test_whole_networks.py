"""Criteria on networks that come with the library, as large as they are."""

import pytest
import torch
from torch import nn

from dctps import criteria, sparsify_
from dctps.models import build_model
from dctps.selection.criteria.scoring import untouched


def layers_of(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


@pytest.mark.parametrize(("name", "flow"), [("mobilenetv2", 1e31), ("resnet50", 1e69)])
def test_synflow_is_finite(name, flow):
    torch.manual_seed(0)
    model = build_model(name, 10, 3)
    layers = layers_of(model)
    with untouched(model):
        scores, _ = next(criteria.synflow(model, layers, None, [torch.empty(1, 3, 32, 32)]))
    first, *_, last = scores
    assert all(bool(score.isfinite().all()) and bool((score >= 0).all()) for score in scores.values())
    assert float(scores[first].sum()) == pytest.approx(
        float(scores[last].sum()), rel=1e-9
    )  # R goes through both
    assert flow < float(scores[last].sum()) < 100 * flow
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("criterion", ["snip", "force", "iter-snip", "synflow"])
def test_a_fixup_network_is_refused(criterion):
    torch.manual_seed(0)
    model = build_model("fixup-resnet20", 10, 3)
    data = [(torch.randn(4, 3, 32, 32), torch.arange(4))]
    with pytest.raises(ValueError, match=f"'{criterion}' cannot rank this network: all .*Fixup.*'random'"):
        sparsify_(model, 0.01, offset="zero", criterion=criterion, batches=data)
    assert isinstance(model.get_submodule(next(iter(layers_of(model)))), nn.Conv2d)
