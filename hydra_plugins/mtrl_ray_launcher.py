"""hydra/launcher=ray: the jobs of a sweep on the machines of the Ray cluster that runs on this one.

Hydra looks for plug-ins in the namespace package `hydra_plugins`. This one was written since hydra-ray-launcher 1.2.2
sets the memory of the object store, with which Ray refuses to join a cluster that runs.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

SETTINGS = {"_target_": "hydra_plugins.mtrl_ray_launcher.RayLauncher", "num_cpus": 1, "num_gpus": 0}
"""hydra.launcher.*: what each job needs, all of it on one machine."""


class RayLauncher(Launcher):
    """Starts as many jobs at once as the cluster has room for; the others wait.

    The machines must share the file system: jobs have the sweep's working directory. A job whose machine is lost goes
    on from its checkpoint on another.

    Args:
        num_cpus: Cores of each job.
        num_gpus: GPUs of each job; a share of one is possible.

    Raises:
        UserError: Ray is not installed, no cluster runs on this machine, or no machine of it has what a job needs.
    """

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        self.resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        ray = self._connected()
        remote = ray.remote(scheduling_strategy="SPREAD", **self.resources)(_run)
        state, here = Singleton.get_state(), Path.cwd()
        try:
            jobs = [
                remote.remote(self.task, self._config_of(number, overrides), state, here)
                for number, overrides in enumerate(job_overrides, initial_job_idx)
            ]
            try:
                while _unfinished(ray, jobs, timeout=0):
                    time.sleep(0.5)  # Ray would turn what a signal's handler raises into another exception
            except BaseException:
                _unfinished(ray, jobs, timeout=None)  # they see that the sweep is being stopped
                raise
            return [_returned(ray, job) for job in jobs]
        finally:
            ray.shutdown()

    def _connected(self) -> Any:
        # Not at the top: every program with Hydra in this environment imports its plug-ins, and these import torch.
        from mtrl.parallel.ray_actors import connected
        from mtrl.types import UserError

        ray = connected("hydra/launcher=ray")
        machines = [Counter(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        needed = {"CPU": self.resources["num_cpus"], "GPU": self.resources["num_gpus"]}
        if not any(all(machine[key] >= number for key, number in needed.items()) for machine in machines):
            ray.shutdown()
            raise UserError(f"Each job needs {needed}, but no machine of the Ray cluster has as many.")
        return ray

    def _config_of(self, number: int, overrides: Sequence[str]) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config


def _run(task: TaskFunction, config: DictConfig, state: Any, here: Path) -> Any:
    """Runs a job in a process of Ray's."""
    os.chdir(here)
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    return task(config)


def _unfinished(ray: Any, jobs: Sequence[Any], timeout: float | None) -> Sequence[Any]:
    """Those of some jobs that have not ended in so many seconds."""
    unfinished: Sequence[Any] = ray.wait(jobs, num_returns=len(jobs), timeout=timeout)[1] if jobs else []
    return unfinished


def _returned(ray: Any, job: Any) -> JobReturn:
    try:
        return JobReturn(_return_value=ray.get(job), status=JobStatus.COMPLETED)
    except ray.exceptions.RayError as error:
        return JobReturn(_return_value=error, status=JobStatus.FAILED)


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=SETTINGS, provider="mtrl")
