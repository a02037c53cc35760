"""The network of a run as a program that does not need this library: ONNX, or torch.export's."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dctps.experiments.trained import Preprocessing
from dctps.files import write_atomically
from dctps.names import lookup
from dctps.networks import merge_
from dctps.networks.surgery import Mergeable

_ALLOWED = 1e-3  # of the largest output: the largest difference of a program that is written
_KEY = "dctps"  # of the facts within the file


class _OfPixels(nn.Module):
    """The network behind its normalisation."""

    def __init__(self, network: nn.Module, facts: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.scale: Tensor
        self.shift: Tensor
        rows = torch.tensor([(1 / (255 * s), -m / s) for m, s in zip(facts.mean, facts.std, strict=True)])
        self.register_buffer("scale", rows[:, 0, None, None].clone())
        self.register_buffer("shift", rows[:, 1, None, None].clone())

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.network(images.float() * self.scale + self.shift)
        return result


def export_network(model: nn.Module, output: Path, *, kind: str = "onnx", merge: bool = False) -> float:
    """Write a network of `load_run` as a program from the bytes of images to outputs.

    Its input `images` is uint8 (batch, channels, image_size, image_size) for any batch, its output `logits`
    float32 (batch, classes); the normalisation is in it. Names of the classes, mean, deviation and sizes are
    JSON in the file: the metadata `dctps` of ONNX, the extra file `dctps` of torch.export. The file is only
    written once the program has given the network's own outputs for batches of two sizes.

    Args:
        model: on the CPU; it is changed in place where it is merged.
        output: the file.
        kind: `"onnx"`, which needs the extra `onnx`, or `"program"`, for `torch.export.load`.
        merge: make plain dense layers first, in place of D's steps and S. A hyperplane always is.

    Returns:
        The largest difference from the network's outputs, as a share of the largest output.

    Raises:
        ValueError: an unknown kind, an extra that is missing, or a program with other outputs.
        OSError: the file cannot be written.
    """
    facts = model.preprocessing
    assert isinstance(facts, Preprocessing), "the network comes from load_run"
    make = lookup("format", _KINDS, kind)
    generator = torch.Generator().manual_seed(0)
    sizes = [(n, facts.channels, facts.image_size, facts.image_size) for n in (2, 5)]
    tests = [torch.randint(256, size, generator=generator, dtype=torch.uint8) for size in sizes]
    with torch.no_grad():
        wanted = [model(facts(images)) for images in tests]
        plain = merge_(model) if merge or isinstance(model, Mergeable) else model
        content, run = make(_OfPixels(plain, facts).eval(), tests[0], json.dumps(asdict(facts)))
        found = [run(images) for images in tests]
    largest = max(float(y.abs().max()) for y in wanted) or 1.0
    difference = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)) / largest
    if not difference <= _ALLOWED:
        raise ValueError(
            f"the {kind} program's outputs differ from the network's by {difference:.1e} of the largest, so "
            f"it is not written: {'export the other format' if merge else 'try --merge'}"
        )
    write_atomically(output, content)
    return difference


_Made = tuple[bytes, Callable[[Tensor], Tensor]]  # the file, and a function that runs it


def _onnx(module: nn.Module, images: Tensor, facts: str) -> _Made:
    try:
        import onnxruntime  # noqa: PLC0415 (an extra)
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        raise ValueError(
            f"ONNX needs {error.name}, which is not installed: pip install 'dctps[onnx]', or --format program"
        ) from None
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # three packages remark on each other
    try:
        with warnings.catch_warnings():  # of torch's own exporter about itself
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                module, (images,), dynamo=True, dynamic_shapes=_BATCH, verbose=False,
                input_names=["images"], output_names=["logits"],
            )  # fmt: skip
    finally:
        logging.disable(before)
    proto = made.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = _KEY, facts
    content: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _program(module: nn.Module, images: Tensor, facts: str) -> _Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        made = torch.export.export(module, (images,), dynamic_shapes=_BATCH)
        torch.export.save(made, file, extra_files={_KEY: facts})
        content = file.getvalue()
        run = torch.export.load(io.BytesIO(content)).module()
    return content, run


_BATCH = ({0: torch.export.Dim("batch", min=1, max=65536)},)
_KINDS: dict[str, Callable[[nn.Module, Tensor, str], _Made]] = {"onnx": _onnx, "program": _program}
SUFFIXES = {"onnx": ".onnx", "program": ".pt2"}
