"""Command lines that cannot be: one line on standard error that says what to do, and status 2."""

import re

import pytest

from dctps import cli

# A line, and what its message must say: the flag or field, the value, or the way that works.
LINES = [
    ("--density .1", "a command comes first, such as `dctps train --density`"),
    ("--tyro-print-completion ksh", "ksh"),
    ("trian", "unknown command 'trian': did you mean 'train'"),
    ("Train", "did you mean 'train'"),
    ("train --densty .1", "did you mean --density"),
    ("train --density", "--density"),
    ("train --density x", "--density wants a number, got x"),
    ("train --density=x", "--density wants a number, got x"),
    ("train --density -1", "density must be in [0, 1], got -1.0"),
    ("train --density nan", "density must be in [0, 1], got nan"),
    ("train --seed 1e3", "--seed wants a whole number, got 1e3"),
    ("train --seed -1", "seed must be from 0"),
    ("train --epochs 1.5", "--epochs wants a whole number, got 1.5"),
    ("train --epochs none", "--epochs wants a whole number, got none"),
    ("train --bias False", "--bias takes no value, got False: write --bias, or --no-bias"),
    ("train --alpha mach", "--alpha wants one or match or a number, got mach"),
    ("train --amp BF16", "'--amp'. Expected one of off, bf16, fp16"),
    ("train --norm 3", "'--norm'. Expected one of affine, plain, shared"),
    ("train --milestones .6 x", "--milestones wants a number, any number of times, got .6 x"),
    ("train --clip-norm None", "--clip-norm wants a number, got None"),
    ("train --threads x", "--threads wants a whole number, got x"),
    ("train --threads 0", "threads must be from 1 to 1024, got 0"),
    ("train --device gpu", "unknown device 'gpu'"),
    ("train --checkpoint-interval 0", "checkpoint_interval must be at least 1"),
    ("train runs/x", "runs/x"),
    ("train --model LeNet5", "did you mean 'lenet5'"),
    ("train --model VGG19", "did you mean 'vgg19'"),
    ("train --method DCTPS", "did you mean 'dctps'?"),
    ("train --method Dense", "did you mean 'dense'"),
    ("train --dataset CIFAR10", "did you mean 'cifar10'"),
    ("train --dataset Digits", "did you mean 'digits'"),
    ("train --optimizer SGD", "did you mean 'sgd'"),
    ("train --schedule OneCycle", "did you mean 'onecycle'"),
    ("train --offset DCT", "did you mean 'dct'"),
    ("train --criterion Magnitude", "did you mean 'magnitude'"),
    ("train --allocation ERK", "did you mean 'erk'"),
    ("train --recipe Paper", "did you mean 'paper'"),
    ("train --method dense --density .1", "density 0.1 would have no effect"),
    ("train --criterion nonzero --density .1", "give density 1"),
    ("train --momentum .5", "momentum 0.5 would have no effect"),
    ("train --nesterov", "nesterov needs the optimizer sgd"),
    ("train --milestones .5", "multistep has"),
    ("train --flip", "see augment"),
    ("train --method snip --alpha match", "alpha match would have no effect"),
    ("train --projection sparse", "'dctps' has no projection"),
    ("train --levels 3", "belongs to the dynamics imp"),
    ("train --update-interval 10", "belongs to the dynamics rigl"),
    ("train --options steps=3", "option steps belongs to force"),
    ("train --dataset cifar10 --data-dir nowhere", "no data folder nowhere"),
    ("train --tune --backends x", "leave one of the two out"),
    ("sweep", "say what to sweep"),
    ("sweep --preview", "say what to sweep"),
    ("sweep method", "write name=value"),
    ("sweep metod=dctps", "did you mean 'method'"),
    ("sweep density=", "density has the wrong type: a number is wanted, got ''"),
    ("sweep bias=no", "bias has the wrong type: true or false is wanted, got 'no'"),
    ("sweep epochs=1.0", "epochs has the wrong type: a whole number is wanted, got '1.0'"),
    ("sweep model=LeNet5", "did you mean 'lenet5'"),
    ("sweep dataset=Digits", "did you mean 'digits'"),
    ("sweep schedule=step", "unknown schedule 'step'"),
    ("sweep method=dense density=.1", "density 0.1 would have no effect"),
    ("sweep seed=1 --file nowhere.toml", "nowhere.toml cannot be read"),
    ("sweep seed=1 --workers 0", "--workers must be at least 1, got 0"),
    ("sweep seed=1 --threads 0 --preview", "--threads must be at least 1, got 0"),
    ("sweep seed=1 --stack 0", "a stack needs at least 1 run, got 0"),
    ("figure 9", "Expected one of 1, 2, 3, 4, 5, table1"),
    ("figure 1 density=x --preview", "density has the wrong type"),
    ("evaluate", "Missing from dctps evaluate: PATH"),
    ("evaluate nowhere", "nowhere holds no run"),
    ("report a b", "there is no folder a"),
    ("report nowhere --seed 1", "--seed describes a network"),
    ("report nowhere --classes 3", "--classes describes a network"),
    ("report --html x.html", "need the folder"),
    ("report --method dense --density .1", "density 0.1 would have no effect"),
    ("recipes Paper", "did you mean 'paper'"),
    ("recipes --method dense", "which recipe"),
    ("intrinsic --method dctps", "has no dimensions to search"),
    ("intrinsic --density .1", "the search finds it"),
    ("intrinsic --seed 1 --seeds 1 2", "beside --seeds"),
    ("bench foo", "Expected one of linear, conv"),
]  # fmt: skip


def status_of(argv):
    try:
        return cli.main(argv)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("line", "message"), LINES)
def test_a_bad_command_line_is_answered_in_one_line(tmp_path, monkeypatch, capfd, line, message):
    monkeypatch.chdir(tmp_path)
    assert status_of(line.split()) == 2
    out, err = capfd.readouterr()
    assert err.startswith("dctps: error: ") and err.count("\n") == 1 and message in err
    assert not out and not list(tmp_path.iterdir())
    assert not re.search(r"<class|typing\.|Traceback|not supported between|literal for|NoneType", err)


@pytest.mark.parametrize(
    "line",
    [
        "sweep --preview epochs=1 density=.05",
        "sweep method=dctps --preview epochs=1 density=.05",
        "sweep --preview --threads 1 method=dctps --workers 2 epochs=1 density=5e-2",
    ],
)
def test_words_may_stand_before_and_after_flags(tmp_path, capfd, line):
    assert cli.main([*line.split(), "--out", str(tmp_path / "a=b")]) == 0
    assert "missing  lenet5-digits-dctps-0.05-seed0-epochs1" in capfd.readouterr().out
