"""State of the random number generators."""

from __future__ import annotations

import random

import numpy as np
import torch

from mtrl.state import check_like
from mtrl.types import State


class RngStates:
    """Savable: the global random number generators of torch (CPU and every CUDA device), numpy and Python."""

    def state_dict(self) -> State:
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        numpy_words = torch.from_numpy(np.asarray(keys, dtype=np.int64))
        version, words, gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [str(name), numpy_words, int(position), int(has_gauss), float(cached)],
            "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        }

    def load_state_dict(self, state: State) -> None:
        """Raises whatever the generators raise for an invalid state."""
        fresh = self.state_dict()
        name, keys, position, has_gauss, cached = state["numpy"]
        version, words, gauss = state["python"]
        check_like(keys, fresh["numpy"][1], "numpy")
        check_like(words, fresh["python"][1], "python")
        torch.set_rng_state(state["torch"])
        for device in range(min(len(state["cuda"]), torch.cuda.device_count())):
            torch.cuda.set_rng_state(state["cuda"][device], device)
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
        random.setstate((version, tuple(words.tolist()), gauss))
