import math

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dctps.experiments.state import StateError, read_state, write_state


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    shared = torch.arange(6.0)
    state = {
        "numbers": [0.1, -1e-300, math.inf, 2**70, True, None, 'ä"sha256":"\\'],
        "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        "deep": {"a": [{"x": shared}, shared.view(2, 3).T]},
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.empty(0, 2, dtype=torch.uint8),
    }
    write_state(tmp_path / "s", state)
    found = read_state(tmp_path / "s")
    assert found["numbers"] == state["numbers"]
    assert found.keys() == state.keys()
    for a, b in [
        (found["half"], state["half"]),
        (found["deep"]["a"][0]["x"], shared),
        (found["deep"]["a"][1], shared.view(2, 3).T),
        (found["scalar"], state["scalar"]),
        (found["empty"], state["empty"]),
    ]:
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a, b)
    assert math.copysign(1, found["half"][1]) == -1


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    text = '{"epoch": 3, "model": {"w": {"$tensor": "/model/w"}}, "lr": Infinity}'
    metadata = {"state": text, "sha256": "0" * 64}
    (tmp_path / "s").write_bytes(safetensors.torch.save({"/model/w": torch.arange(3.0)}, metadata))
    found = read_state(tmp_path / "s")
    assert (found["epoch"], found["lr"]) == (3, math.inf)
    assert torch.equal(found["model"]["w"], torch.arange(3.0))


@pytest.mark.parametrize("value", [{1: 2}, {"$tensor": 1}, (1, 2), object(), b"bytes"])
def test_what_a_state_cannot_hold(tmp_path, value):
    with pytest.raises(TypeError):
        write_state(tmp_path / "s", {"x": value})
    assert not list(tmp_path.iterdir())


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_damaged_file_is_recognised(tmp_path, data):
    path = tmp_path / "s"
    write_state(path, {"x": torch.arange(5.0), "y": [{"z": 1}]})
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert", "append"])):
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[place:]
        case "insert":
            content[place:place] = b"0"
        case "append":
            content += b"\0"
    path.write_bytes(content)
    with pytest.raises(StateError):
        read_state(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04N.", b"\xff" * 64, (40).to_bytes(8, "little") + b"[" * 40, b"\x02" + bytes(7) + b"{}"],
)
def test_files_that_are_no_state(tmp_path, content):
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(StateError):
        read_state(tmp_path / "s")
