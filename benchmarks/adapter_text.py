"""Small language models of Python's source, adapted to its manual's prose, for `benchmarks/adapters.py`."""

from __future__ import annotations

import copy
import functools
import math
import pydoc_data.topics
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Text:
    """A small Llama trained on bytes of Python's source, adapted to its manual's prose."""

    name = "text"
    file = "llama-bytes.pt"
    targets: ClassVar = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    saved: ClassVar[list[str]] = []
    r = 4
    settings: ClassVar = {
        "layers": 4, "width": 128, "context": 128, "batch": 16, "steps": 700, "adapted_steps": 120,
        "adapted_batch": 8, "validation_sequences": 64, "test_sequences": 192,
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.file

    def _network(self) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 (heavy)

        s = self.settings
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=s["width"],
            intermediate_size=3 * s["width"],
            num_hidden_layers=s["layers"],
            num_attention_heads=4,
            max_position_embeddings=s["context"],
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
        return LlamaForCausalLM(config)

    def pretrained(self) -> nn.Module:
        """Trained here on first use, then read from a file."""
        model = self._network()
        if self.path.exists():
            model.load_state_dict(torch.load(self.path))
            return model
        s, generator = self.settings, torch.Generator().manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=s["steps"], pct_start=0.1)
        for step in range(s["steps"]):
            optimizer.zero_grad()
            loss = self.loss(model, _drawn(_source(), s["batch"], s["context"], generator))
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 100 == 99:
                print(f"pretraining text: step {step + 1}, loss {loss.item():.3f}", flush=True)
        torch.save(model.state_dict(), self.path)
        return model

    def base_score(self) -> float:
        """Minus the bits for a byte of the prose before anything is adapted."""
        return self.scores(self.pretrained())["test"]

    def base(self, seed: int) -> nn.Module:
        """A copy."""
        return copy.deepcopy(self.pretrained())

    def batches(self, seed: int) -> Iterator[Tensor]:
        """Windows of the prose, the last fifth of which is kept for validation and test."""
        s, generator = self.settings, torch.Generator().manual_seed(seed)
        text = _prose()[: len(_prose()) * 4 // 5]
        for _ in range(s["adapted_steps"]):
            yield _drawn(text, s["adapted_batch"], s["context"], generator)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Cross-entropy of the next byte in nats."""
        logits = model(input_ids=batch[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    @torch.no_grad()
    def scores(self, model: nn.Module) -> dict[str, float]:
        """Minus the bits for a byte."""
        model.eval()
        s, text = self.settings, _prose()[len(_prose()) * 4 // 5 :]
        generator = torch.Generator().manual_seed(1)
        found = {}
        for part in ("validation", "test"):
            half = text[: len(text) // 3] if part == "validation" else text[len(text) // 3 :]
            batches = [_drawn(half, 32, s["context"], generator) for _ in range(s[f"{part}_sequences"] // 32)]
            found[part] = (
                -sum(self.loss(model, batch).item() for batch in batches) / len(batches) / math.log(2)
            )
        return found


class Gpt2(Text):
    """The same with a GPT-2, whose layers are transformers' `Conv1D`."""

    name = "gpt2"
    file = "gpt2-bytes.pt"
    targets: ClassVar = ["c_attn", "c_proj", "c_fc"]

    def _network(self) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 (heavy)

        s = self.settings
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=256,
            n_positions=s["context"],
            n_embd=s["width"],
            n_layer=s["layers"],
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        return GPT2LMHeadModel(config)


@functools.cache
def _source() -> Tensor:
    """About three million bytes of the standard library's modules, in the order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return _bytes(b"\n".join(path.read_bytes() for path in sorted(folder.glob("*.py"))))


@functools.cache
def _prose() -> Tensor:
    """The half million bytes of Python's manual that come with it."""
    topics = pydoc_data.topics.topics
    return _bytes("\n".join(topics[name] for name in sorted(topics)).encode())


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _drawn(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(text) - length, (count, 1), generator=generator)
    return text[starts + torch.arange(length)].long()
