"""A model as one small file, and back; the bytes are specified in docs/checkpoint.md."""

from dctps.checkpoint.container import CheckpointError as CheckpointError
from dctps.checkpoint.load import load_pretrained_ as load_pretrained_
from dctps.checkpoint.load import load_state as load_state
from dctps.checkpoint.save import file_size as file_size
from dctps.checkpoint.save import save_pretrained as save_pretrained
from dctps.checkpoint.save import save_state as save_state
