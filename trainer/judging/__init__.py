"""A run -> which of its checkpoints is the best, at which strength, why, and what is wrong with the run."""

from trainer.judging.evaluating import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
