"""Find the final answer in a response and compare it with the ground truth: `extract`, `check`, and the pipeline's `Verifier`."""

from mixpo.verify.check import CHECKS, check
from mixpo.verify.extract import extract
from mixpo.verify.kinds import guess_kind
from mixpo.verify.verifier import CustomCheck, Verifier

__all__ = ["CHECKS", "CustomCheck", "Verifier", "check", "extract", "guess_kind"]
