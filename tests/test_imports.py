"""The order of the folders, as CONTRIBUTING.md has it: nothing imports upwards, and nothing in a circle."""

import ast
import functools
import re
from pathlib import Path

import dctps

ROOT = Path(dctps.__file__).parent
TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
# These stand above all others: they load names when those are first used, or begin the program.
OUTSIDE = {"__init__", "__main__", "moved"}


def floors():
    """The folders and modules of each line of the order, the lowest line first."""
    block = re.search(r"```\n(cli/ .*?)```", TEXT, re.DOTALL)[1]
    names = [re.split(r"\s{2,}", line)[0].split() for line in block.splitlines()]
    return [[name.rstrip("/") for name in line] for line in reversed(names)]


def package(module):
    """The folder directly below dctps, or the module there."""
    return module.removeprefix("dctps.").split(".")[0]


@functools.cache
def imported():
    """For each module the modules that it imports, at whatever place in it; lazy names by where they are."""
    files = {
        ".".join(("dctps", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
    }
    found = {}
    for module, path in files.items():
        if package(module) in {"dctps", *OUTSIDE}:
            continue
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            match node:
                case ast.Import():
                    names = [alias.name for alias in node.names]
                case ast.ImportFrom(module=str(where)):
                    names = [f"{where}.{alias.name}" for alias in node.names]
                case ast.Attribute(value=ast.Name(id="dctps"), attr=name) if name in dctps._HOMES:
                    names = [f"dctps.{dctps._HOMES[name]}"]
            for name in names:
                whole = name if name in files else name.rpartition(".")[0]
                if whole in files and package(whole) != "dctps":
                    found[module].add(whole)
    return found


def test_every_folder_and_module_has_its_place():
    there = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    named = [name for line in floors() for name in line]
    assert sorted(named) == sorted(there - OUTSIDE)


def test_nothing_imports_upwards():
    floor = {name: number for number, line in enumerate(floors()) for name in line}
    upward = [
        f"{module} imports {other}"
        for module, others in imported().items()
        for other in others
        if floor[package(other)] > floor[package(module)]
    ]
    assert not upward


def circle(graph):
    """Some circle in a graph; None if there is none."""
    done = set()

    def search(node, path):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        done.add(node)
        return next(
            (found for other in sorted(graph.get(node, ())) if (found := search(other, [*path, node]))), None
        )

    return next((found for node in sorted(graph) if (found := search(node, []))), None)


def test_no_modules_and_no_folders_import_in_a_circle():
    modules = imported()
    folders = {}
    for module, others in modules.items():
        folders.setdefault(package(module), set()).update(
            package(other) for other in others if package(other) != package(module)
        )
    assert circle(modules) is None
    assert circle(folders) is None


def test_the_search_finds_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_nothing_but_the_command_line_and_what_measures_knows_of_stacks():
    knowing = {
        package(module)
        for module, others in imported().items()
        if any(package(o) == "stacks" for o in others)
    }
    assert knowing <= {"stacks", "cli", "benchmarking"}
