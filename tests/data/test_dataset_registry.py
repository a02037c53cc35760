import copy
from pathlib import Path

import pytest

from dctps.data import DataError, list_datasets, load_dataset, register_dataset, registry


@pytest.fixture
def calls(monkeypatch):
    """A registered data set `toy` that notes how it is called; the registry is put back afterwards."""
    monkeypatch.setattr(registry, "DATASETS", copy.copy(registry.DATASETS))
    monkeypatch.delenv("DCTPS_DATA", raising=False)
    calls = []

    @register_dataset("toy")
    def load_toy(data_dir, download):
        calls.append((data_dir, download))
        return load_dataset("digits")

    return calls


def test_the_built_in_names():
    assert {"digits", "cifar10", "cifar100"} <= set(list_datasets())
    assert list_datasets() == sorted(list_datasets())


def test_a_registered_callable_gets_the_folder(calls, monkeypatch, tmp_path):
    assert load_dataset("toy").name == "digits"
    load_dataset("toy", str(tmp_path), download=True)
    monkeypatch.setenv("DCTPS_DATA", "~/somewhere")
    load_dataset("toy")
    load_dataset("toy", tmp_path)
    monkeypatch.setenv("DCTPS_DATA", "")
    load_dataset("toy")
    home = Path("~").expanduser()
    assert calls == [
        (None, False),
        (tmp_path, True),
        (home / "somewhere", False),
        (tmp_path, False),
        (None, False),
    ]


def test_a_name_can_be_taken_once(calls):
    with pytest.raises(ValueError, match="already taken"):
        register_dataset("toy")(lambda data_dir, download: load_dataset("digits"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", r"unknown data set 'cifar': did you mean 'cifar10' or 'cifar100'\?"),
        ("digit", r"did you mean 'digits'\?"),
        ("xyz", "choose from .*cifar10, cifar100, digits"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(name)


def test_the_variable_is_named_when_no_folder_is_given(monkeypatch):
    monkeypatch.delenv("DCTPS_DATA", raising=False)
    with pytest.raises(DataError, match=r"--data-dir or set DCTPS_DATA"):
        load_dataset("cifar10")


def test_a_folder_of_nobody():
    with pytest.raises(DataError, match="~no-such-user/data begins with the name of no user"):
        load_dataset("digits", "~no-such-user/data")
