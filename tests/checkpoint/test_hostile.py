"""Files that are cut, flipped, oversized, or made to harm."""

import copy
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import pytest
import torch
from tests.support.small_networks import plain, same_state
from torch import nn

from dctps.checkpoint import CheckpointError, load_state, save_state
from dctps.nn import DpSLayer
from dctps.sparse import check_support

DIGEST = slice(48, 112)


def seal(content: bytes) -> bytes:
    """With the checksum that fits, as whoever makes a hostile file would write it."""
    blank = content[: DIGEST.start] + b"0" * 64 + content[DIGEST.stop :]
    return content[: DIGEST.start] + hashlib.sha256(blank).hexdigest().encode() + content[DIGEST.stop :]


def parts(content: bytes):
    """The header as a dictionary, the metadata within it, and the data."""
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    return table, json.loads(table["__metadata__"]["dctps"]), content[8 + length :]


def assemble(table, fields, data: bytes) -> bytes:
    table["__metadata__"]["dctps"] = json.dumps(fields, separators=(",", ":"))
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return seal(len(header).to_bytes(8, "little") + header + data)


def mutate(content: bytes, draw: random.Random) -> bytes:
    """One of the ways in which a file goes wrong."""
    header = 8 + int.from_bytes(content[:8], "little")
    end = draw.choice([8, header, len(content)])
    at = draw.randrange(end)
    changed = bytearray(content)
    match draw.randrange(9):
        case 0:
            changed[at] ^= 1 << draw.randrange(8)
        case 1:
            changed[at] = draw.randrange(256)
        case 2:
            del changed[at:]
        case 3:
            del changed[at : at + draw.randrange(1, 20)]
        case 4:
            changed[at:at] = draw.randbytes(draw.randrange(1, 20))
        case 5:
            other, n = draw.randrange(len(content)), draw.randrange(1, 20)
            changed[at : at + n], changed[other : other + n] = (
                changed[other : other + n],
                changed[at : at + n],
            )
        case 6:
            changed += draw.randbytes(draw.choice([1, 8, 3000]))
        case 7:
            numbers = list(re.finditer(rb"\d+", content[112:header]))
            found = draw.choice(numbers)
            new = draw.choice([0, 1, 2, -1, 7, 255, 2**31, 2**53, 2**63, 2**64, 10**30, 1e9, "null"])
            changed[112 + found.start() : 112 + found.end()] = str(new).encode()
        case 8:
            pieces = [
                rb"F32",
                rb"F16",
                rb"U8",
                rb"I64",
                rb"dct",
                rb"true",
                rb"null",
                rb"values",
                rb"[",
                rb"{",
            ]
            old, new = draw.sample(pieces, 2)
            changed = bytearray(content[:8] + content[8:header].replace(old, new, 1) + content[header:])
    if draw.random() < 0.5 and len(changed) > header:
        changed[:8] = (
            content[:8]
            if draw.random() < 0.5
            else (header - 8 + len(changed) - len(content)).to_bytes(8, "little", signed=True)
        )
    return bytes(changed)


def is_sound(model: nn.Module, original: nn.Module) -> bool:
    """Whether every tensor has the dtype and shape that it must have, and every support is one."""
    left, right = model.state_dict(), original.state_dict()
    layers = [module for module in model.modules() if isinstance(module, DpSLayer)]
    return (
        left.keys() == right.keys()
        and all(left[k].dtype == right[k].dtype and left[k].shape == right[k].shape for k in left)
        and all(torch.equal(m.support, check_support(m.support, m.offset.shape)) for m in layers)
    )


@pytest.fixture
def memory_file():
    """A file in memory: ten thousand of them on a disk take most of a minute."""
    descriptor = os.memfd_create("checkpoint")
    with open(descriptor, "r+b", buffering=0) as file:  # noqa: PTH123
        yield file, Path(f"/proc/self/fd/{descriptor}")


def rewrite(file, content: bytes) -> None:
    file.seek(0)
    file.write(content)
    file.truncate()


CONSTANT = 1 << 16  # bytes that Python may take for a load beside ten times the file


@pytest.mark.parametrize("name", ["seeded", "packed", "half", "dense"])
def test_2500_mutated_files(files, memory_file, name):
    model, content = files[name]
    draw = random.Random(name)
    fresh = copy.deepcopy(model)
    if name != "dense":
        for parameter in fresh.parameters():
            parameter.data.zero_()
    untouched = copy.deepcopy(fresh)
    file, path = memory_file
    refused, loaded, highest = 0, 0, 0
    for i in range(2500):
        sealed, measured = i % 2 == 1, i % 9 == 0  # tracing every load would take minutes
        changed = mutate(content, draw)
        if sealed and len(changed) > DIGEST.stop:
            changed = seal(changed)
        rewrite(file, changed)
        problem = None
        if measured:
            tracemalloc.start()
        try:
            load_state(fresh, path)
        except CheckpointError as error:
            problem = str(error)
        finally:
            if measured:
                highest = max(highest, tracemalloc.get_traced_memory()[1] - 10 * len(changed))
                tracemalloc.stop()
        if problem is None:
            loaded += 1
            assert is_sound(fresh, model) if sealed else same_state(fresh, model)
            fresh = copy.deepcopy(untouched)
        else:
            refused += 1
            assert "\n" not in problem and len(problem) < 600
        if i % 50 == 0:
            assert same_state(fresh, untouched)
    assert same_state(fresh, untouched)
    assert highest < CONSTANT
    assert refused > 2000 and refused + loaded == 2500
    print(f"{name}: {refused} refused, {loaded} loaded, {highest} bytes over ten times the file")


@pytest.mark.parametrize("name", ["seeded", "packed"])
def test_a_file_cut_at_every_byte(files, memory_file, name):
    model, content = files[name]
    file, path = memory_file
    target = copy.deepcopy(model)
    for length in range(len(content)):
        rewrite(file, content[:length])
        with pytest.raises(CheckpointError, match="no readable checkpoint"):
            load_state(target, path)
    assert same_state(target, model)


def test_a_flipped_bit_in_any_byte_is_found(files, memory_file):
    model, content = files["packed"]
    file, path = memory_file
    for at in range(len(content)):
        rewrite(file, content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        with pytest.raises(CheckpointError):
            load_state(model, path)


EDITS = {
    "huge nnz": lambda t, f: f["layers"][0].update(nnz=10**12),
    "nnz beyond the layer": lambda t, f: f["layers"][0].update(nnz=73),
    "one value fewer": lambda t, f: f["layers"][0].update(nnz=f["layers"][0]["nnz"] - 1),
    "negative nnz": lambda t, f: f["layers"][0].update(nnz=-1),
    "a boolean nnz": lambda t, f: f["layers"][0].update(nnz=True),
    "a fractional nnz": lambda t, f: f["layers"][0].update(nnz=2.0),
    "another shape": lambda t, f: f["layers"][0].update(shape=[3, 4, 2, 3]),
    "a huge shape": lambda t, f: f["layers"][0].update(shape=[2**40, 2**40]),
    "no shape": lambda t, f: f["layers"][0].update(shape=[]),
    "a nested shape": lambda t, f: f["layers"][0].update(shape=[[4], 2, 3, 3]),
    "an unknown offset": lambda t, f: f["common"].update(offset="dcp"),
    "no offset": lambda t, f: f["common"].update(offset="zero"),
    "a seed of text": lambda t, f: f["common"].update(seed="0"),
    "a huge seed": lambda t, f: f["common"].update(seed=10**4000),
    "groups": lambda t, f: f["common"].update(groups=2),
    "a Rice parameter too large": lambda t, f: f["common"].update(rice=40),
    "supports that are not there": lambda t, f: f["common"].update(rice=None),
    "a name twice": lambda t, f: f["layers"][0].update(name="5"),
    "a name that is none": lambda t, f: f["layers"][0].update(name="1"),
    "a foreign name": lambda t, f: f["layers"][0].update(name="\n" * 500),
    "a name outside Unicode": lambda t, f: f["layers"][0].update(name="\ud800"),
    "draws outside Unicode": lambda t, f: f["common"].update(draws="\udfff"),
    "no record": lambda t, f: f["layers"].pop(),
    "a record too many": lambda t, f: f["layers"].append(dict(f["layers"][0], name="6")),
    "a record of text": lambda t, f: f["layers"].__setitem__(0, "0"),
    "an unknown field": lambda t, f: f["common"].update(code="import os"),
    "a missing field": lambda t, f: f["common"].pop("seed"),
    "a newer format": lambda t, f: f.update(format=2),
    "no format": lambda t, f: f.pop("format"),
    "a boolean format": lambda t, f: f.update(format=True),
    "unknown norms": lambda t, f: f.update(norms="gone"),
    "a list as norms": lambda t, f: f.update(norms=[]),
    "inference that is none": lambda t, f: f.update(inference_only=True),
    "layers that are no list": lambda t, f: f.update(layers={}),
    "metadata that are no object": lambda t, f: f.update(user=[]),
    "values of bytes": lambda t, f: t["values"].update(dtype="U8"),
    "an unknown dtype": lambda t, f: t["values"].update(dtype="F128"),
    "a dtype that is no text": lambda t, f: t["values"].update(dtype=["F32"]),
    "a size that is not a number": lambda t, f: t["values"].update(shape=[float("nan")]),
    "an infinite size": lambda t, f: t["values"].update(shape=[float("inf")]),
    "a negative size": lambda t, f: t["values"].update(shape=[-1]),
    "a huge size of nothing": lambda t, f: t["values"].update(shape=[0, 2**60], data_offsets=[0, 0]),
    "many dimensions": lambda t, f: t["values"].update(shape=[1] * 100_000),
    "overlapping tensors": lambda t, f: (
        t["0.bias"].update(data_offsets=t["5.bias"]["data_offsets"])
        if "0.bias" in t
        else t["3.bias"].update(data_offsets=t["5.bias"]["data_offsets"])
    ),
    "offsets beyond the end": lambda t, f: t["values"].update(data_offsets=[2**50, 2**50 + 4]),
    "reversed offsets": lambda t, f: t["values"].update(data_offsets=t["values"]["data_offsets"][::-1]),
    "a tensor without a description": lambda t, f: t.update(values=None),
    "a tensor too many": lambda t, f: t.update(extra={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
    "a missing tensor": lambda t, f: t.pop("alpha"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_headers_that_lie_under_a_fitting_checksum(files, tmp_path, edit):
    model, content = files["packed"]
    table, fields, data = parts(content)
    edit(table, fields)
    (tmp_path / "lie").write_bytes(assemble(table, fields, data))
    with torch.device("meta"):
        meta = plain()
    for target in (plain(), meta, copy.deepcopy(model)):
        before = copy.deepcopy(target)
        with pytest.raises(CheckpointError) as caught:
            load_state(target, tmp_path / "lie")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
        assert str(before) == str(target)
        if not any(t.is_meta for t in target.parameters()):
            assert same_state(before, target)


def test_an_unedited_file_that_is_put_together_again_loads(files, tmp_path):
    """So that the edits above fail for what they edit."""
    model, content = files["packed"]
    table, fields, data = parts(content)
    (tmp_path / "same").write_bytes(assemble(table, fields, data))
    assert (tmp_path / "same").read_bytes() == content
    load_state(copy.deepcopy(model), tmp_path / "same")


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 50_000,
        b'{"a":' * 20_000,
        b"[" + b"[]," * 20_000 + b"[]]",
        b'{"a":1,"a":2}',
        b"1" * 50_000,
        b"\xff\xfe",
        b"NaN",
        b'"',
        b"",
    ],
    ids=[
        "deep list",
        "deep object",
        "many lists",
        "key twice",
        "long number",
        "bytes",
        "nan",
        "cut",
        "empty",
    ],
)
@pytest.mark.parametrize("inner", [True, False])
def test_json_that_is_large_deep_or_broken(files, tmp_path, text, inner):
    model, content = files["packed"]
    opening = content[8 : DIGEST.stop]
    if inner:
        escaped = text.decode("latin-1").replace("\\", "\\\\").replace('"', '\\"').encode("latin-1")
        header = opening + b'\\",\\"format\\":' + escaped + b'}"}}'
    else:
        header = opening + b'\\"}"},"x":' + text + b"}"
    (tmp_path / "json").write_bytes(seal(len(header).to_bytes(8, "little") + header))
    with pytest.raises(CheckpointError, match="no readable checkpoint") as caught:
        load_state(copy.deepcopy(model), tmp_path / "json")
    assert len(str(caught.value)) < 600


def test_a_boolean_that_is_none(tmp_path):
    model = nn.Module()
    model.register_buffer("flags", torch.tensor([True, False]))
    save_state(model, tmp_path / "a")
    table, fields, _ = parts((tmp_path / "a").read_bytes())
    (tmp_path / "b").write_bytes(assemble(table, fields, b"\x01\x02"))
    with pytest.raises(CheckpointError, match="neither 0 nor 1"):
        load_state(model, tmp_path / "b")


def test_an_oversized_file_is_not_read(files, tmp_path):
    model, content = files["seeded"]
    with (tmp_path / "large").open("wb") as file:
        file.write(content)
        file.truncate(1 << 40)  # a terabyte, sparse
    with pytest.raises(CheckpointError, match="more than any checkpoint of this model"):
        load_state(model, tmp_path / "large")


def test_lies_about_sizes_take_no_memory(files, tmp_path):
    """In a process of its own that may not take 300 MB more: counts, shapes and headers of up to 2^53."""
    _, content = files["packed"]
    for i, name in enumerate(
        ["huge nnz", "a huge shape", "a huge size of nothing", "offsets beyond the end"]
    ):
        table, fields, data = parts(content)
        EDITS[name](table, fields)
        (tmp_path / f"{i}").write_bytes(assemble(table, fields, data))
    (tmp_path / "4").write_bytes((2**62).to_bytes(8, "little") + content[8:])
    # A model that declares 2^52 weights on the meta device does not make a lie about nnz come true.
    big = [2**26, 2**26]
    table, fields, data = parts(content)
    fields["layers"] = [{"name": "0", "shape": big, "nnz": 2**51, **fields["common"], "rice": 3}]
    (tmp_path / "5").write_bytes(assemble(table, fields, data))
    program = textwrap.dedent(
        """
        import resource, sys, torch
        from pathlib import Path
        from torch import nn
        from tests.support.small_networks import plain
        from dctps.checkpoint import CheckpointError, load_state
        targets = [plain() for _ in range(5)]
        with torch.device("meta"):
            targets.append(nn.Sequential(nn.Linear(2**26, 2**26)))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 300_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for i, target in enumerate(targets):
            try:
                load_state(target, Path(sys.argv[1]) / str(i))
            except CheckpointError as error:
                print(error)
        """
    )
    paths = [*sys.path, str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
