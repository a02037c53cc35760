"""What several files of a public repository say is the same in all of them, and true of pyproject.toml."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
yaml = pytest.importorskip("yaml")
if not (ROOT / ".github").exists():
    pytest.skip("the sdist has no workflows", allow_module_level=True)


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_repository_has_one_address() -> None:
    source = PROJECT["urls"]["Source"]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git repository")
    texts = {
        name: (ROOT / name).read_text()
        for name in listed.stdout.splitlines()
        if name.endswith((".md", ".toml", ".yml", ".yaml", ".cff")) and (ROOT / name).exists()
    }
    found = {
        (name, url)
        for name in texts
        for url in re.findall(r"https://github\.com/[\w-]+/dctps\b", texts[name])
    }
    assert {url for _, url in found} == {source}
    assert {"CITATION.cff", "SECURITY.md", "pyproject.toml"} <= {name for name, _ in found}


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    paper = citation["preferred-citation"]["identifiers"][0]["value"].removeprefix("arXiv:")
    assert PROJECT["urls"]["Paper"].endswith(f"/{paper}")


def test_the_oldest_releases_that_are_tested_are_the_declared_ones() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    for requirement in map(Requirement, PROJECT["dependencies"]):
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        assert f"{tested[requirement.name]}.".startswith(f"{bound.version}."), requirement.name


def test_the_workflow_runs_what_is_declared() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    prefix = "Programming Language :: Python :: 3."
    declared = {
        "3." + line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(prefix)
    }
    run = {case["python"] for case in jobs["test"]["strategy"]["matrix"]["include"]}
    assert run == declared
    assert PROJECT["requires-python"] == f">={min(declared, key=lambda v: int(v[2:]))}"
    core = read(".github/workflows/ci.yml")["env"]["CORE"].split()
    assert core and all((ROOT / path).exists() for path in core)


def test_jobs_of_the_workflows_wait_for_each_other() -> None:
    for name in ("ci.yml", "release.yml"):
        jobs = read(f".github/workflows/{name}")["jobs"]
        for job in jobs.values():
            needs = job.get("needs", [])
            assert {*([needs] if isinstance(needs, str) else needs)} <= {*jobs}
            assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    # only what was tried everywhere is published, and only that job may publish
    assert jobs["publish"]["needs"] == "try"
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
