"""The recipe: one TOML file that says everything a run does. Unknown keys are errors; every setting exists once, here.

Knows nothing about how stages work. `load` reads and checks a file, `Recipe.model_dump` is what digests and manifests hold.
"""

from mixpo.recipe.base import CHOOSES_STAGES, NOTHING, STAGES, Decides, StageKind, Table
from mixpo.recipe.data import (
    BalanceBy,
    ImageTable,
    ModelTable,
    PairsTable,
    PromptMix,
    PromptName,
    PromptShare,
    PromptTable,
    PromptText,
    SampleTable,
    VerifyTable,
    names_in,
)
from mixpo.recipe.errors import did_you_mean
from mixpo.recipe.evaluate import EvaluateTable, EvaluationSet, PredictionsTable, ReportTable
from mixpo.recipe.load import Recipe, apply_override, load, parse
from mixpo.recipe.preferences import PreferencesTable
from mixpo.recipe.server import ClusterTable, Endpoint, JudgeTable, ServedModel, ServerTable
from mixpo.recipe.sources import (
    BENCHMARK_NAMES,
    EXTRACTED_BENCHMARKS,
    JUDGED_BENCHMARKS,
    OFFICIAL_BENCHMARKS,
    BenchmarkSource,
    DigitsSource,
    EasyVqaSource,
    EvaluationSource,
    HubSource,
    JsonlSource,
    MmprSource,
    PythonSource,
    Source,
)
from mixpo.recipe.train import LoraTable, LossTable, Part, TrainTable, WandbTable, WatchTable

__all__ = [
    "BENCHMARK_NAMES",
    "CHOOSES_STAGES",
    "EXTRACTED_BENCHMARKS",
    "JUDGED_BENCHMARKS",
    "NOTHING",
    "OFFICIAL_BENCHMARKS",
    "STAGES",
    "BalanceBy",
    "BenchmarkSource",
    "ClusterTable",
    "Decides",
    "DigitsSource",
    "EasyVqaSource",
    "Endpoint",
    "EvaluateTable",
    "EvaluationSet",
    "EvaluationSource",
    "HubSource",
    "ImageTable",
    "JsonlSource",
    "JudgeTable",
    "LoraTable",
    "LossTable",
    "MmprSource",
    "ModelTable",
    "PairsTable",
    "Part",
    "PredictionsTable",
    "PreferencesTable",
    "PromptMix",
    "PromptName",
    "PromptShare",
    "PromptTable",
    "PromptText",
    "PythonSource",
    "Recipe",
    "ReportTable",
    "SampleTable",
    "ServedModel",
    "ServerTable",
    "Source",
    "StageKind",
    "Table",
    "TrainTable",
    "VerifyTable",
    "WandbTable",
    "WatchTable",
    "apply_override",
    "did_you_mean",
    "load",
    "names_in",
    "parse",
]
