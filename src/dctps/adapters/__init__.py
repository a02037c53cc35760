"""Sparse adapters: a pretrained network W_0 stays where it is, and S of a few weights trains on it."""

from dctps.adapters.adapt import adapt_ as adapt_
from dctps.adapters.file import adapter_state as adapter_state
from dctps.adapters.file import load_adapter_ as load_adapter_
from dctps.adapters.file import save_adapter as save_adapter
from dctps.adapters.shira import load_shira_ as load_shira_
from dctps.adapters.shira import save_shira as save_shira
from dctps.adapters.switch import active_adapter as active_adapter
from dctps.adapters.switch import disable as disable
from dctps.adapters.switch import list_adapters as list_adapters
from dctps.adapters.switch import merge_adapter_ as merge_adapter_
from dctps.adapters.switch import remove_adapter_ as remove_adapter_
from dctps.adapters.switch import set_adapter_ as set_adapter_
from dctps.adapters.switch import unmerge_adapter_ as unmerge_adapter_
