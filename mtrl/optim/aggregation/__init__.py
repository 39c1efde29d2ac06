"""Gradient aggregation: one method per file. Results have the scale of a mean unless documented otherwise."""

from mtrl.optim.aggregation.agem import AGEM as AGEM
from mtrl.optim.aggregation.base import Aggregation as Aggregation
from mtrl.optim.aggregation.base import GramianAggregation as GramianAggregation
from mtrl.optim.aggregation.base import JacobianAggregation as JacobianAggregation
from mtrl.optim.aggregation.base import Mean as Mean
from mtrl.optim.aggregation.base import MeasuredMean as MeasuredMean
from mtrl.optim.aggregation.base import Sum as Sum
from mtrl.optim.aggregation.cagrad import CAGrad as CAGrad
from mtrl.optim.aggregation.gem import GEM as GEM
from mtrl.optim.aggregation.gradvac import GradVac as GradVac
from mtrl.optim.aggregation.great import GREAT as GREAT
from mtrl.optim.aggregation.mgda import MGDA as MGDA
from mtrl.optim.aggregation.pcgrad import PCGrad as PCGrad
from mtrl.optim.aggregation.torchjd import TorchJD as TorchJD
