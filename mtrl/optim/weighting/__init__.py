"""Loss weighting: one method per file. Weights have mean 1."""

from mtrl.optim.weighting.alpha_softmax import AlphaSoftmax as AlphaSoftmax
from mtrl.optim.weighting.base import LearnedWeighting as LearnedWeighting
from mtrl.optim.weighting.base import Uniform as Uniform
from mtrl.optim.weighting.base import Weighting as Weighting
from mtrl.optim.weighting.dwa import DWA as DWA
from mtrl.optim.weighting.famo import FAMO as FAMO
from mtrl.optim.weighting.focal import Focal as Focal
from mtrl.optim.weighting.geometric_mean import GeometricMean as GeometricMean
from mtrl.optim.weighting.gradnorm import GradNorm as GradNorm
from mtrl.optim.weighting.implicit_schedule import ImplicitSchedule as ImplicitSchedule
from mtrl.optim.weighting.lbtw import LBTW as LBTW
from mtrl.optim.weighting.uncertainty import Uncertainty as Uncertainty
