"""Policies that come with the package: a folder for each, found by its name wherever a policy is asked for.

    policies/<name>/
      config.json, model.safetensors        the policy, as in a checkpoint
      card.json                             what it was measured to do, and how it was made
      README.md                             the same for a reader, with the metadata that the Hugging Face hub reads

`python -m mtrl.zoo` lists them, `python -m mtrl.zoo card` makes such a folder from a run.
"""
