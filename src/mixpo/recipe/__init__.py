"""The recipe: one TOML file that says everything a run does. Unknown keys are errors; every setting exists once, here.

Knows nothing about how stages work. `load` reads and checks a file, `Recipe.model_dump` is what digests and manifests hold.
"""

from mixpo.recipe.base import Table
from mixpo.recipe.data import ImageTable, ModelTable, PairsTable, PromptName, PromptTable, PromptText, SampleTable, VerifyTable
from mixpo.recipe.evaluate import EvaluateTable, EvaluationSet, ReportTable
from mixpo.recipe.messages import did_you_mean
from mixpo.recipe.server import ServerTable
from mixpo.recipe.sources import DigitsSource, EasyVqaSource, HubSource, JsonlSource, MmprSource, PythonSource, Source
from mixpo.recipe.train import LoraTable, LossTable, Part, TrainTable
from mixpo.recipe.whole import Recipe, load, parse

__all__ = [
    "DigitsSource",
    "EasyVqaSource",
    "EvaluateTable",
    "EvaluationSet",
    "HubSource",
    "ImageTable",
    "JsonlSource",
    "LoraTable",
    "LossTable",
    "MmprSource",
    "ModelTable",
    "PairsTable",
    "Part",
    "PromptName",
    "PromptTable",
    "PromptText",
    "PythonSource",
    "Recipe",
    "ReportTable",
    "SampleTable",
    "ServerTable",
    "Source",
    "Table",
    "TrainTable",
    "VerifyTable",
    "did_you_mean",
    "load",
    "parse",
]
