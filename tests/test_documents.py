"""What the documents show must run, and what they link to must be there."""

import copy
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import dctps
from dctps.dynamic import base
from dctps.models import build_model
from dctps.offsets import registry as offsets
from dctps.selection import allocation
from dctps.selection.criteria import registry as criteria
from dctps.testing import OffsetContract

ROOT = Path(__file__).parent.parent


DENSE = (torch.nn.Flatten(), torch.nn.Linear(3072, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 10))


def blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("README.md")
    assert "range(100)" in example
    scope: dict[str, object] = {}
    exec(example.replace("range(100)", "range(2)"), scope)
    again = dctps.load_pretrained_(torch.nn.Sequential(*map(copy.deepcopy, DENSE)), "out")
    assert torch.equal(again[1].values, scope["model"][1].values)
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 200_000  # dense it is 50 MB


def test_example_of_the_page_on_changing_supports_runs() -> None:
    (example,) = blocks("docs/dynamic.md")
    scope: dict[str, object] = {}
    exec(example.replace("range(100)", "range(11)"), scope)
    assert scope["rigl"].steps == 11


def test_own_loop_of_the_training_page_runs() -> None:
    (example,) = (block for block in blocks("docs/training.md") if "train_epoch" in block)
    scope: dict[str, object] = {}
    exec(example.replace("print(", "metrics = ("), scope)
    assert scope["metrics"].loss > 0


@pytest.mark.parametrize(
    ("document", "mark"),
    [
        ("docs/backends.md", "explain("),
        ("docs/backends.md", "tune_("),
        ("docs/data.md", "from_arrays"),
        ("docs/recipes.md", "build_recipe"),
        ("docs/training.md", "share_norms_"),
    ],
)
def test_other_examples_run(
    document: str, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in blocks(document) if mark in block)
    exec(example, {})


def test_the_hyperplane_page_runs() -> None:
    example = blocks("docs/hyperplane.md")[0]
    scope: dict[str, object] = {}
    exec(example.replace("print(", "found = ("), scope)
    assert scope["found"].trainable["dimensions"] == 1541  # the number that the page gives
    assert isinstance(scope["plain"], torch.nn.Sequential)


def test_extensions_of_the_contributing_guide_work(monkeypatch: pytest.MonkeyPatch) -> None:
    registries = (
        (offsets, "OFFSETS"),
        (allocation, "ALLOCATIONS"),
        (criteria, "CRITERIA"),
        (base, "DYNAMICS"),
    )
    for module, name in registries:
        monkeypatch.setattr(module, name, copy.copy(getattr(module, name)))
    guide = types.ModuleType("guide")  # pickle looks classes up in their module
    monkeypatch.setitem(sys.modules, "guide", guide)
    for block in blocks("CONTRIBUTING.md"):
        exec(block, vars(guide))
    contract = guide.TestFlat()
    assert isinstance(contract, OffsetContract)
    for name in dir(contract):
        if name.startswith("test_"):
            getattr(contract, name)()
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    model = dctps.sparsify_(
        network,
        0.25,
        offset="flat",
        allocation="first",
        criterion="gradient",
        batches=[(torch.ones(2, 4), torch.zeros(2, dtype=torch.long))],
    )
    assert [layer.nnz for layer in model] == [4, 0]
    with torch.no_grad():
        model[0].values.copy_(torch.tensor([3.0, 1.0, 2.0, 4.0]))
    before = model[0].support.tolist()
    optimizer = torch.optim.SGD(model[0].parameters(), 0.0)
    model[1].values.requires_grad_(False)
    swap = dctps.dynamic.find_dynamics("swap")(model, optimizer, update_interval=1, end=9)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert swap.step()
    free = min(set(range(12)) - {*before})
    assert model[0].support.tolist() == sorted({*before, free} - {before[1]})


def test_examples_of_the_selection_page_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "CRITERIA", copy.copy(criteria.CRITERIA))
    choice, own = blocks("docs/selection.md")
    scope: dict[str, object] = {"MyNetwork": lambda: build_model("lenet5", 10, 3)}
    exec(choice, scope)
    exec(own, scope)
    model = dctps.sparsify_(
        build_model("lenet5", 10, 3),
        0.01,
        criterion="thrice",
        loss=dctps.criteria.cross_entropy,
        batches=scope["data"],
    )
    assert dctps.report(model).nnz == dctps.report(scope["model"]).nnz == 618


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)
