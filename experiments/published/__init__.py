"""Published checkpoints as models of ours: ``load(folder)``."""

from experiments.published.load import FAMILIES, Published, load, plan_of

__all__ = ["FAMILIES", "Published", "load", "plan_of"]
