"""Which task a slot runs next. Importing this package registers the samplers, one method per file."""

from mtrl.data.task_sampling import a5c as a5c
from mtrl.data.task_sampling import adaptive_schedule as adaptive_schedule
from mtrl.data.task_sampling import ea4c as ea4c
from mtrl.data.task_sampling import gap as gap
from mtrl.data.task_sampling import learning_progress as learning_progress
from mtrl.data.task_sampling import proportional as proportional
from mtrl.data.task_sampling import ua4c as ua4c
from mtrl.data.task_sampling import uniform as uniform
from mtrl.data.task_sampling.allocation import allocate as allocate
from mtrl.data.task_sampling.base import TaskSampler as TaskSampler
