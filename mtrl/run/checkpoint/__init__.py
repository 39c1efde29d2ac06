"""Checkpoints: an explicit list of savables, written beside the old ones and renamed, so that a kill loses nothing.

    checkpoints/
      000000400000/
        manifest.json                       size and sha256 of every other file
        training_state/<savable>/state.json, state.safetensors
        policy/...                          whatever `extra` writes
      last -> 000000400000

Nothing is pickled: tensors go to safetensors, the rest to JSON.
"""
