"""What is done to a whole network: its modules replaced, looked at, measured, written in other layers."""

from dctps.networks import conversions as conversions
from dctps.networks.conversion import register_conversion as register_conversion
from dctps.networks.explanation import explain as explain
from dctps.networks.fusion import fuse_ as fuse_
from dctps.networks.fusion import unfuse_ as unfuse_
from dctps.networks.head import zero_head_ as zero_head_
from dctps.networks.norms import freeze_except_norms_ as freeze_except_norms_
from dctps.networks.norms import plain_norms_ as plain_norms_
from dctps.networks.norms import remove_biases_ as remove_biases_
from dctps.networks.norms import share_norms_ as share_norms_
from dctps.networks.surgery import merge_ as merge_
from dctps.networks.tuning import set_backends_ as set_backends_
from dctps.networks.tuning import tune_ as tune_
