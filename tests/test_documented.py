"""Every block of Python in README and docs runs, and every command in them is one that the program reads."""

import copy
import re
import shlex
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from dctps.cli.program import _read, _without_plugins
from dctps.data import registry as data
from dctps.experiments.records import RunFolderError
from dctps.networks import conversion
from dctps.selection.criteria import registry as criteria

REGISTRIES = (
    (criteria, "CRITERIA"),
    (conversion, "CONVERSIONS"),
    (data, "DATASETS"),
    (data, "DESCRIPTIONS"),
)
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name != "flags.md"]  # which the program writes

# What a page takes for granted, and what makes its examples short enough for a test.
BEFORE = {
    "checkpoint.md": "import torch, dctps\nfrom copy import deepcopy\n"
    "plain = torch.nn.Sequential(torch.nn.Linear(8, 8))\n"
    "model = dctps.sparsify_(deepcopy(plain), 0.1)\n",
    "figures.md": "from pathlib import Path\nPath('runs').mkdir()\n",
    "networks.md": "import torch\n",
    "selection.md": "from functools import partial\nfrom dctps.models import build_model\n"
    "MyNetwork = partial(build_model, 'lenet5', 10, 3)\n",
}
SHORTER = {
    "range(100)": "range(2)",
    "range(3):\n": "range(1):\n",
    "epochs=5)": "epochs=1)",
    '{"epochs": 5}': '{"epochs": 1}',
    "[0.05, 0.005]": "[0.05]",
    '"cifar10", "path/to/data"': '"digits", None',
    "dataset.train, 5000": "dataset.train, 100",
    'to("cuda")': 'to("cpu")',
}
# Minutes of training; a cluster.
ONLY_COMPILED = ("intrinsic_dimension(", "on_ray(")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, as a reader would run them."""
    if page.name == "CONTRIBUTING.md":
        pytest.skip("test_documents.py runs it, and what it registers")
    for module, name in REGISTRIES:
        monkeypatch.setattr(module, name, copy.copy(getattr(module, name)))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": page.stem}
    with warnings.catch_warnings():
        run_blocks(page, scope)


def run_blocks(page: Path, scope: dict[str, object]) -> None:
    exec(BEFORE.get(page.name, ""), scope)
    for block in blocks(page, "python"):
        if "lightning" in block:
            pytest.importorskip("lightning")
        if "hub" in block:
            pytest.importorskip("huggingface_hub")
        if "opacus" in block:
            pytest.importorskip("opacus")
            warnings.simplefilter("ignore")  # of its hooks, and that a test's noise may be guessed
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        code = compile(block, page.name, "exec")
        if not any(call in block for call in ONLY_COMPILED):
            torch.manual_seed(0)
            exec(code, scope)


def commands(page: Path) -> list[str]:
    text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    return [line.split(" #")[0].split(" | ")[0] for line in re.findall(r"(?m)^\$ dctps (.+)$", text)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_are_read(page: Path) -> None:
    for command in commands(page):
        words, _ = _without_plugins(shlex.split(command.replace("...", "")))
        with suppress(RunFolderError):  # `--resume` looks into the folder
            _read(words)


def test_the_pages_stay_readable() -> None:
    """No page of prose is longer than a person reads at once, and all of them are under a book's length."""
    words = {
        page.name: sum(1 for word in page.read_text().split() if re.search(r"\w", word))
        for page in PAGES
        if page.parent.name == "docs"
    }
    assert {name: count for name, count in words.items() if count > 2500} == {}
    assert sum(words.values()) < 30_000
