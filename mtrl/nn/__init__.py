"""Networks: torsos, cores, trunks, heads, task encoders, scaling. Importing this package registers them."""

from mtrl.nn import cores as cores
from mtrl.nn import heads as heads
from mtrl.nn import scaling as scaling
from mtrl.nn import task_encoders as task_encoders
from mtrl.nn import torsos as torsos
from mtrl.nn import value_heads as value_heads
from mtrl.nn.trunks import adashare as adashare
from mtrl.nn.trunks import bronet as bronet
from mtrl.nn.trunks import care as care
from mtrl.nn.trunks import cross_stitch as cross_stitch
from mtrl.nn.trunks import film as film
from mtrl.nn.trunks import hard_routing as hard_routing
from mtrl.nn.trunks import mlp as mlp
from mtrl.nn.trunks import mmoe as mmoe
from mtrl.nn.trunks import modular as modular
from mtrl.nn.trunks import moore as moore
from mtrl.nn.trunks import mtan as mtan
from mtrl.nn.trunks import nddr as nddr
from mtrl.nn.trunks import none as none
from mtrl.nn.trunks import paco as paco
from mtrl.nn.trunks import piggyback as piggyback
from mtrl.nn.trunks import simba_v2 as simba_v2
from mtrl.nn.trunks import sluice as sluice
from mtrl.nn.trunks import soft_layer_ordering as soft_layer_ordering
from mtrl.nn.trunks import soft_modules as soft_modules
from mtrl.nn.trunks import soft_sharing as soft_sharing
