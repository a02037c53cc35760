"""Runs that are killed, cut off from power, or out of disk space at a chosen operation on their files.

A child process is forked for each run, so that torch is imported once. Run as a program, it goes through
every operation of a small run: `python -m tests.support.faults kill FOLDER 1`, or of another method's with
its name at the end.
"""

import errno
import functools
import itertools
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dctps.data import Dataset, ImageTensors, register_dataset
from dctps.experiments import RunConfig
from dctps.experiments.folder import RunFolderError
from dctps.experiments.run import run
from dctps.experiments.signals import Stopped
from dctps.models import register_model

MODES = ("kill", "power cut, names lost", "power cut, contents lost", "disk full")


def send_after(steps, number):
    """Send this process a signal in the middle of its step with that number."""
    count = 0

    def hook(optimizer, arguments, keywords):
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), number)

    return register_optimizer_step_post_hook(hook)


class FileOperations:
    """Counts this process's changes to the folder `root`, and makes the one with number `k` fail.

    Every opening for writing, write, fsync, rename, unlink and mkdir counts. A write that fails has written
    its first half.

    After a power cut a file holds what it held at its last fsync (nothing, if there was none). What the
    folder lists is either what it listed at its own last fsync ("names lost"), or what it lists now
    ("contents lost"): a disk may do either. A full disk stays full.

    Args:
        root: of one run; the levels of imp are folders in it.
        mode: one of `MODES`.
        k: counted from 0.
    """

    NAMES = ("open", "close", "write", "fsync", "replace", "unlink", "mkdir")

    def __init__(self, root, mode, k):
        self.root, self.mode, self.k = root, mode, k
        self.count = 0
        self.full = False
        self.paths = {}
        self.real = {name: getattr(os, name) for name in self.NAMES}
        self.contents = {f.stat().st_ino: f.read_bytes() for f in root.rglob("*") if f.is_file()}
        self.listed = self.all_names()
        for name in self.NAMES:
            setattr(os, name, getattr(self, name))

    def open(self, path, flags, *arguments, **keywords):
        path = Path(os.fsdecode(path))
        ours = path in (self.root.parent, self.root) or self.within(path)
        if ours and flags & os.O_CREAT:
            self.step("open")
        new = not path.exists()
        descriptor = self.real["open"](path, flags, *arguments, **keywords)
        if ours:
            self.paths[descriptor] = path
            if new:
                self.contents[os.fstat(descriptor).st_ino] = b""
        return descriptor

    def close(self, descriptor):
        self.paths.pop(descriptor, None)
        self.real["close"](descriptor)

    def write(self, descriptor, content):
        if descriptor in self.paths:
            self.step("write", lambda: self.real["write"](descriptor, content[: len(content) // 2]))
        return self.real["write"](descriptor, content)

    def fsync(self, descriptor):
        path = self.paths.get(descriptor)
        if path is not None:
            self.step("fsync")
            if path == self.root.parent:
                if self.root.exists():
                    self.listed.setdefault(self.root, {})
            elif path.is_dir():
                self.listed[path] = self.names(path)
            else:
                self.contents[os.fstat(descriptor).st_ino] = path.read_bytes()
        self.real["fsync"](descriptor)

    def replace(self, source, target):
        if self.within(Path(target)):
            self.step("replace")
        self.real["replace"](source, target)

    def unlink(self, path, **keywords):
        if self.within(Path(path)) and Path(path).exists():
            self.step("unlink")
        self.real["unlink"](path, **keywords)

    def mkdir(self, path, *arguments, **keywords):
        if Path(path) == self.root or self.within(Path(path)):
            self.step("mkdir")
        self.real["mkdir"](path, *arguments, **keywords)

    def within(self, path):
        return self.root in path.parents

    def names(self, folder):
        """What a folder lists: the contents of its files, and None for each folder."""
        return {f.name: None if f.is_dir() else self.contents[f.stat().st_ino] for f in folder.iterdir()}

    def all_names(self):
        folders = [self.root, *(f for f in self.root.rglob("*") if f.is_dir())] if self.root.exists() else []
        return {folder: self.names(folder) for folder in folders}

    def step(self, operation, half=lambda: None):
        """Fail here, if here is where."""
        here = self.count == self.k
        self.count += 1
        if self.mode == "disk full":
            self.full = self.full or here
            if self.full and operation != "unlink" and (here or operation in ("open", "write", "mkdir")):
                half()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif here:
            half()
            if self.mode != "kill":
                self.cut_power()
            os.kill(os.getpid(), signal.SIGKILL)

    def cut_power(self):
        for name, function in self.real.items():
            setattr(os, name, function)
        listed = self.listed if self.mode == "power cut, names lost" else self.all_names()
        if self.root.exists():
            shutil.rmtree(self.root)

        def put_back(folder):
            folder.mkdir()
            for name, content in listed.get(folder, {}).items():
                if content is None:
                    put_back(folder / name)
                else:
                    (folder / name).write_bytes(content)

        if self.root in listed:
            put_back(self.root)


def in_child(function):
    """Call `function` in a forked process; its exit status, or minus the signal that killed it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            function()
            status = 0
        except RunFolderError as error:
            print("error:", error, file=sys.stderr)
            status = 2
        finally:
            # Not sys.exit: the parent's cleanup is the parent's.
            if status == 99:
                sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(folder):
    """All that a finished run has come to: its files as bytes, without the times in them."""
    found = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    for name, content in found.items():
        if name.endswith("metrics.jsonl"):
            found[name] = [json.loads(line) | {"seconds": 0} for line in content.splitlines()]
        if name.endswith("summary.json"):
            found[name] = json.loads(content) | {"seconds": 0}
    return found


@register_dataset("tiny")
def tiny_dataset(data_dir, download):
    """48 noisy images of three classes, 8 x 8."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randint(0, 256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    images[:, :, :, :2] = (labels * 100).view(-1, 1, 1, 1).to(torch.uint8)
    train, test = ImageTensors(images[:48], labels[:48]), ImageTensors(images[48:], labels[48:])
    return Dataset("tiny", train, test, classes=3, mean=(0.5,), std=(0.25,), flip=True)


@register_model("tiny")
def tiny_network(classes, in_channels, image_size):
    """Everything that has a state: normalisation's averages, dropout's random numbers, two kinds of layer."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(144, classes),
    )  # fmt: skip


TINY = RunConfig(
    model="tiny", dataset="tiny", density=0.2, epochs=2, batch_size=16, validation_size=0.25, seed=3
)


def train_tiny(folder, config=TINY, **choices):
    """Run it, saved after every second of its three steps an epoch."""
    return run(config, out=folder, threads=1, checkpoint_interval=2, **choices)


def every_operation(mode, scratch, *, stride=1, train=train_tiny):
    """Fail at each operation of a run in turn, go on each time, and compare; returns their number.

    With a stride only at every so many.

    Raises:
        AssertionError: a run that was cut short and continued ended differently, or could not go on.
    """
    folder = scratch / "whole"
    # Here, not in a child: what torch does once in a process is then done in all of them.
    train(folder)
    whole = outcome(folder)
    folder = scratch / "run"
    for k in itertools.count(step=stride):

        def cut_short(k=k):
            FileOperations(folder, mode, k)
            train(folder)

        status = in_child(cut_short)
        finished = status == 0
        assert finished or status == (2 if mode == "disk full" else -signal.SIGKILL), (mode, k, status)
        again = in_child(lambda: train(folder))
        assert again == 0, (mode, k, again)
        assert outcome(folder) == whole, (mode, k)
        shutil.rmtree(folder)
        if finished:
            return k
    raise AssertionError("unreachable")


if __name__ == "__main__":
    torch.set_num_threads(1)
    config = TINY
    if len(sys.argv) > 4:
        moving = {"levels": 2} if sys.argv[4] == "imp" else {"update_interval": 1, "dynamics_end": 1.0}
        config = replace(TINY, method=sys.argv[4], **moving)
    train = functools.partial(train_tiny, config=config)
    print(every_operation(sys.argv[1], Path(sys.argv[2]), stride=int(sys.argv[3]), train=train))


def stop_after(steps, folder, number=signal.SIGINT, **choices):
    handle = send_after(steps, number)
    try:
        with pytest.raises(Stopped) as info:
            run(choices.pop("config", TINY), out=folder, threads=1, **choices)
    finally:
        handle.remove()
    return info.value
