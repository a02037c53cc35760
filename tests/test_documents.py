"""What the documents show must run, and what they link to must be there."""

import copy
import inspect
import re
import subprocess
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
from tests.support.browser import measure

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


INTERNAL = {"identity", "kernels"}  # what layers and paths are made of


def test_the_api_page_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    listed = {name.rpartition(".")[2] for name in re.findall(r"(?m)^\.\. auto\w+:: (\S+)$", text)}
    modules = [dctps, *(getattr(dctps, folder) for folder in dctps._FOLDERS if folder not in INTERNAL)]
    missing = [
        f"{module.__name__}.{name}"
        for module in modules
        if hasattr(module, "__path__")
        for name in (dctps.__all__ if module is dctps else vars(module))
        if (inspect.isclass(value := getattr(module, name)) or inspect.isfunction(value))
        and value.__module__.startswith("dctps")
        and not name.startswith("_")
        and name not in listed
    ]
    assert not missing


def test_example_of_the_page_on_changing_supports_runs() -> None:
    (example,) = blocks("docs/dynamic.md")
    scope: dict[str, object] = {}
    exec(example.replace("range(100)", "range(11)"), scope)
    assert scope["rigl"].steps == 11


def test_the_page_on_federated_rounds_runs() -> None:
    scope: dict[str, object] = {}
    for example in blocks("docs/federated.md"):
        exec(example, scope)
    assert dctps.report(scope["mean"]).nnz == dctps.report(scope["server"]).nnz


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


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built as `make docs` builds it."""
    out = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-W", "--quiet", "-b", "html", str(ROOT / "docs"), str(out)]
    subprocess.run(command, check=True, cwd=ROOT)
    return out


def test_the_pages_need_no_network(pages: Path) -> None:
    link = r"""<(?:script|img|iframe|source|link)\s[^>]*(?:src|href)=["']?(?:https?:)?//"""
    fetched = re.compile(link)
    for page in pages.glob("*.html"):
        assert not fetched.search(page.read_text()), page.name
    for style in pages.glob("_static/**/*.css"):
        assert not re.search(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", style.read_text()), style.name
    assert fetched.search('<script defer src="https://cdn.example/x.js">')  # it would notice


def test_every_formula_is_mathml(pages: Path) -> None:
    """None is left as TeX, and the converter knew every command."""
    count = 0
    for page in pages.glob("*.html"):
        formulas = re.findall(r"<math.*?</math>", page.read_text(), re.DOTALL)
        count += len(formulas)
        assert not [formula for formula in formulas if "\\" in formula or "&amp;" in formula]
        assert "\\(" not in page.read_text() and "\\[" not in page.read_text()
    assert count > 60


@pytest.mark.parametrize("name", ["how-it-works", "index", "figures", "performance"])
def test_a_browser_shows_formulas_whole_and_code_in_its_column(pages: Path, name: str) -> None:
    page = (pages / f"{name}.html").read_text()
    found, _ = measure(page.replace("<head>", f'<head><base href="{pages.as_uri()}/">'), [390, 1280])
    for frame in found.values():
        assert frame["scrolls"] == 0 and frame["cut"] == []
        assert all(inner <= outer for inner, outer in frame["formulas"])
        assert frame["styles"] > 3 and all(name.startswith("file:") for name in frame["resources"])
        assert len(frame["formulas"]) == {"how-it-works": 5, "index": 1}.get(name, 0)
