"""`push_to_hub` and `from_pretrained` for one's own model class (the extra `hub`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from torch import nn

from dctps.checkpoint.load import load_pretrained_
from dctps.checkpoint.save import FILE, save_pretrained

try:
    from huggingface_hub import ModelHubMixin, hf_hub_download
except ImportError as error:
    raise ImportError("dctps.checkpoint.hub needs huggingface_hub: pip install 'dctps[hub]'") from error


class DpSHubMixin(
    ModelHubMixin,
    library_name="dctps",
    paper_url="https://arxiv.org/abs/2102.07655",
    tags=["dctps", "sparse-training"],
):
    """Gives a model class `save_pretrained`, `push_to_hub` and `from_pretrained`.

        class MyNetwork(nn.Module, DpSHubMixin):
            def __init__(self, width: int = 64): ...


        model = dctps.sparsify_(MyNetwork(width=32))
        model.save_pretrained("folder")  # or model.push_to_hub("me/my-network")
        model = MyNetwork.from_pretrained("folder")  # or "me/my-network"

    The constructor's arguments go into `config.json`, all else into the file of
    `dctps.save_pretrained`; `from_pretrained` builds the plain model and converts what the file says.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        save_pretrained(_as_module(self), save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        of_download = {name: options.pop(name) for name in names if name in options}
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(hf_hub_download(model_id, FILE, **of_download)).parent
        model = cls(**options)
        load_pretrained_(_as_module(model), folder)
        return model


def _as_module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} must be an nn.Module beside DpSHubMixin")
    return model
