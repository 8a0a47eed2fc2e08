"""Scores and comparisons of saved predictions."""

from mixpo.evaluate.score import Comparison, SampledScore, Score, compare, score, score_samples
from mixpo.evaluate.statistics import wilson
from mixpo.evaluate.yes_no import YesNo, yes_no

__all__ = ["Comparison", "SampledScore", "Score", "YesNo", "compare", "score", "score_samples", "wilson", "yes_no"]
