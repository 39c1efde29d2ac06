"""PPO of skrl on the batched Meta-World simulation: pip install skrl.

python docs/examples/skrl_ppo.py
"""

import gymnasium
import numpy as np
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
from skrl.resources.preprocessors.torch import RunningStandardScaler
from torch import nn

import mtrl  # noqa: F401  # registers the ids

SLOTS, ROLLOUT, STEPS = 32, 125, 6_250


class Policy(GaussianMixin, Model):
    def __init__(self, env):
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device=env.device)
        GaussianMixin.__init__(self)
        self.mean = nn.Sequential(
            nn.Linear(self.num_observations, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 4)
        )
        self.log_std = nn.Parameter(torch.zeros(4))

    def compute(self, inputs, role=""):
        return self.mean(inputs["observations"]), {"log_std": self.log_std}


class Value(DeterministicMixin, Model):
    def __init__(self, env):
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device=env.device)
        DeterministicMixin.__init__(self)
        self.value = nn.Sequential(
            nn.Linear(self.num_observations, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1)
        )

    def compute(self, inputs, role=""):
        return self.value(inputs["observations"]), {}


vector = gymnasium.wrappers.vector.RecordEpisodeStatistics(gymnasium.make_vec("mtrl/reach-v3", num_envs=SLOTS, seed=1))
env = wrap_env(vector)
settings = PPO_CFG(
    rollouts=ROLLOUT,
    learning_epochs=4,
    mini_batches=4,
    gae_lambda=0.97,
    learning_rate=5e-4,
    value_clip=0,
    value_loss_scale=1.0,
    time_limit_bootstrap=True,
    observation_preprocessor=RunningStandardScaler,
    observation_preprocessor_kwargs={"size": env.observation_space},
    value_preprocessor=RunningStandardScaler,
    value_preprocessor_kwargs={"size": 1},
)
settings.experiment.write_interval = settings.experiment.checkpoint_interval = 0
agent = PPO(
    models={"policy": Policy(env), "value": Value(env)},
    memory=RandomMemory(memory_size=ROLLOUT, num_envs=SLOTS),
    observation_space=env.observation_space,
    action_space=env.action_space,
    cfg=settings,
)
agent.init()
agent.enable_training_mode(True)

obs, _ = env.reset()
succeeded, rates = np.zeros(SLOTS, bool), []
for t in range(STEPS):
    with torch.no_grad():
        action, _ = agent.act(obs, None, timestep=t, timesteps=STEPS)
        next_obs, reward, terminated, truncated, infos = env.step(action)
        agent.record_transition(
            observations=obs, states=None, actions=action, rewards=reward, next_observations=next_obs, next_states=None,
            terminated=terminated, truncated=truncated, infos=infos, timestep=t, timesteps=STEPS,
        )  # fmt: skip
    agent.post_interaction(timestep=t, timesteps=STEPS)
    obs = next_obs
    succeeded |= infos["success"]
    if truncated.any():
        rates.append(succeeded.mean())
        succeeded[:] = False
        print(f"{(t + 1) * SLOTS:,} steps: success {rates[-1]:.2f}, return {np.mean(vector.return_queue):.0f}")
env.close()
