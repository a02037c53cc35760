"""Runs of any folders side by side."""

import csv
import io
import json
import statistics
from dataclasses import replace

import pytest
from tests.support.faults import TINY, train_tiny

from dctps.analysis.compare import compare, to_csv, to_markdown, to_text
from dctps.analysis.fates import read_fates
from dctps.analysis.figure_runs import keep_failures
from dctps.cli import main

SEEDS = (0, 1, 2)


class Stop(BaseException):
    pass


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two sweeps and a run by itself: of every fate, and in other folders."""
    root = tmp_path_factory.mktemp("compare")
    for seed in SEEDS:
        train_tiny(root / "one" / f"dctps{seed}", replace(TINY, method="dctps", seed=seed))
        if seed < 2:
            train_tiny(root / "two" / f"random{seed}", replace(TINY, method="random-epl", seed=seed))
    train_tiny(root / "alone", replace(TINY, method="dctps", alpha="match"))

    def stop(record):
        raise Stop

    with pytest.raises(Stop):
        cut = replace(TINY, method="random-epl", seed=2)
        train_tiny(root / "two" / "random2", cut, on_epoch=stop)
    hot = replace(TINY, method="sdctps")
    keep_failures(root / "two", {"hot": hot}, {"hot": "too | hot"})
    return root


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def table_of(root, by=None, *folders):
    return compare(read_fates(*(root / name for name in folders or ("one", "two", "alone"))), by)


def test_the_fields_that_tell_them_apart_are_found(runs):
    assert table_of(runs).fields == ("method", "alpha")
    assert table_of(runs, None, "one", "two").fields == ("method",)
    assert table_of(runs, None, "one").fields == ("model", "dataset", "method", "density")


def test_means_and_spreads_are_those_of_the_runs(runs):
    rows = list(csv.DictReader(io.StringIO(to_csv(table_of(runs)))))
    by_key = {(row["method"], row["alpha"]): row for row in rows}
    own = [summary(runs / "one" / f"dctps{seed}") for seed in SEEDS]
    values = [one["last_test_accuracy"] for one in own]
    row = by_key["dctps", "one"]
    assert float(row["test_mean"]) == pytest.approx(statistics.mean(values))
    assert float(row["test_std"]) == pytest.approx(statistics.stdev(values))
    assert [float(value) for value in row["test_values"].split()] == values
    assert (row["n"], row["wanted"], row["not_finished"]) == ("3", "3", "")
    assert int(row["numbers_trained"]) == sum(own[0]["report"]["trainable"].values())
    assert int(row["bytes"]) == own[0]["report"]["disk_bytes"]
    assert float(row["seconds"]) == pytest.approx(statistics.mean(one["seconds"] for one in own))
    assert by_key["dctps", "match"]["n"] == "1" and by_key["dctps", "match"]["test_std"] == ""


def test_what_is_not_finished_stands_in_its_place(runs):
    lines = to_text(table_of(runs, ["method"], "one", "two")).splitlines()
    assert [line.split()[0] for line in lines] == [
        "method",
        "dctps",
        "random-epl",
        "random2:",
        "sdctps",
        "hot:",
    ]
    assert " 2 of 3 " in lines[2] and lines[3].endswith("random2: unfinished, epoch 1 of 2")
    assert " 0 of 1" in lines[4] and lines[5].endswith("hot: failed: too | hot")
    header, rule, *rows = to_markdown(table_of(runs, ["method"], "one", "two")).splitlines()
    assert len(rows) == 3 and rows[2].endswith("| hot: failed: too \\| hot |")
    assert {row.replace("\\|", "").count("|") for row in (header, rule, *rows)} == {9}


def test_any_field_groups_them(runs):
    rows = table_of(runs, ["offset"]).rows
    assert [(row.key, row.test.n, row.test.wanted) for row in rows] == [
        (("dct",), 4, 4), (("sdct",), 0, 1), (("zero",), 2, 3),
    ]  # fmt: skip
    names = [row.key[0] for row in table_of(runs, ["run"]).rows]
    assert names == ["alone", "dctps0", "dctps1", "dctps2", "hot", "random0", "random1", "random2"]
    assert rows[0].test.mean == pytest.approx(sum(rows[0].test.values) / 4)


def test_the_command(runs, tmp_path, capfd):
    one, two = str(runs / "one"), str(runs / "two")
    assert main(["report", one, two, "--by", "offset,alpha-trainable"]) == 0
    assert capfd.readouterr().out.splitlines()[0].split()[:3] == ["offset", "alpha_trainable", "n"]
    assert main(["report", one, "--format", "csv"]) == 0
    assert capfd.readouterr().out.startswith("model,dataset,method,density,n,wanted,test_mean")
    assert main(["report", str(runs / "one" / "dctps0"), "--by", "run"]) == 0
    assert "dctps0" in capfd.readouterr().out
    assert main(["report", str(runs / "one" / "dctps0")]) == 0
    assert "trainable" in capfd.readouterr().out  # of one run what the network is
    assert main(["report", one, two, "--html", str(tmp_path / "both.html")]) == 0
    assert "<title>7 runs</title>" in (tmp_path / "both.html").read_text()
    capfd.readouterr()
    (tmp_path / "sweep.toml").write_text('[[runs]]\nmodel = "tiny"\ndataset = "tiny"\nseed = [7]\n')
    assert main(["report", one, "--by", "seed", "--file", str(tmp_path / "sweep.toml")]) == 0
    assert "0 of 1" in (out := capfd.readouterr().out) and ": missing\n" in out
    for line, message in {
        f"report {one} --by ofset": "did you mean 'offset'",
        f"report {one} --by density --density 0.1": "--density describes a network",
        f"report {one} {two} --backend": "--backend is of one network",
        "report --format csv": "need the folder of a sweep",
        f"report {one} {tmp_path / 'nowhere'}": "there is no folder",
        f"report {tmp_path}": "holds no run",
    }.items():
        assert main(line.split()) == 2
        err = capfd.readouterr().err
        assert err.startswith("dctps: error: ") and err.count("\n") == 1 and message in err


def test_one_that_cannot_be_read_is_named(runs, tmp_path, capfd):
    train_tiny(tmp_path / "good", replace(TINY, epochs=1))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert "bad: failed: " in out and "config.json cannot be read (it is damaged" in out
