"""From one loss per task to an optimiser step. Importing this package registers aggregations and weightings."""

from mtrl.optim import aggregation as aggregation
from mtrl.optim import optimizers as optimizers
from mtrl.optim import weighting as weighting
