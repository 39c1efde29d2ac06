"""Networks: trunks, heads, task encoders, scaling. Importing this package registers them."""

from mtrl.nn import heads as heads
from mtrl.nn import scaling as scaling
from mtrl.nn import task_encoders as task_encoders
from mtrl.nn.trunks import mlp as mlp
from mtrl.nn.trunks import soft_modules as soft_modules
