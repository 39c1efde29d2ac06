"""How experience is made, kept and given to learners. Importing this package registers task samplers."""

from mtrl.data import task_sampling as task_sampling
