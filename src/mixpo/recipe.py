"""The recipe: one TOML file that says everything a run does. Unknown keys are errors; every setting exists once, here.

Knows nothing about how stages work. `load` reads and checks a file, `Recipe.model_dump` is what digests and manifests hold.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixpo.errors import RecipeError
from mixpo.objectives import OBJECTIVES
from mixpo.prompts import PROMPTS, Style
from mixpo.recipe_errors import describe
from mixpo.recipe_errors import did_you_mean as did_you_mean
from mixpo.types import AnswerKind


class Table(BaseModel):
    """Base of every recipe table: unknown keys are refused and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --- [source] and [[evaluate.sets]].source: one table per kind ------------------------------------------------------


class DigitsSource(Table):
    """Scenes of four handwritten digits (UCI, shipped with scikit-learn) with questions whose answers are exact."""

    kind: Literal["digits"]
    pool: Literal["start", "preference", "validation", "test"] = "preference"
    """The pools share no digit image."""
    count: int = Field(default=1000, ge=0)
    """Questions to make; each has a scene of its own."""
    open_share: float = Field(default=0.0, ge=0, le=1)
    """Share of open questions ("Describe the picture.") without an answer."""
    families: tuple[str, ...] = ()
    """Question families to use; empty means all."""
    seed: int = 0
    """Another seed composes other scenes from the same digits."""


class EasyVqaSource(Table):
    """easy-VQA: 5,000 images of shapes with 48,248 questions (PyPI package easy-vqa)."""

    kind: Literal["easy_vqa"]
    split: Literal["train", "test"] = "train"
    count: int = Field(default=0, ge=0)
    """Questions to take, spread evenly over the split; 0 takes all."""


class JsonlSource(Table):
    """A JSONL file in the MMPR prompt format: image (path, list or absent), question, answer (or none)."""

    kind: Literal["jsonl"]
    path: str
    """The file, relative to the recipe."""
    root: str = "."
    """Folder below which every image lies, relative to the recipe. Paths that leave it are refused."""
    answer_kind: AnswerKind | Literal["auto"] = "auto"
    """How answers are compared; "auto" decides from each answer."""
    domain: str = ""
    """Family of the questions whose rows name none."""


class MmprSource(Table):
    """An MMPR collection: meta.json that names JSONL annotations with root and repeat_time."""

    kind: Literal["mmpr"]
    path: str
    """meta.json, relative to the recipe."""
    root: str = "."
    """Folder that the roots and annotations of meta.json are relative to."""
    answer_kind: AnswerKind | Literal["auto"] = "auto"
    datasets: tuple[str, ...] = ()
    """Names from meta.json to use; empty means all."""


class HubSource(Table):
    """A Hugging Face data set: an id on the hub or a local folder, through the `datasets` library."""

    kind: Literal["hub"]
    path: str
    """Hub id or local folder (relative to the recipe)."""
    name: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
    question: str = "question"
    """Column of the question."""
    answer: str | None = "answer"
    """Column of the answer; "" for open questions."""
    image: str | None = "image"
    """Column of the image or list of images; "" for none."""
    choices: str | None = None
    """Column with the list of options of a multiple-choice question."""
    domain: str = ""
    answer_kind: AnswerKind | Literal["auto"] = "auto"
    count: int = Field(default=0, ge=0)
    """Rows to take; 0 takes all."""


class PythonSource(Table):
    """Your own function: it returns an iterable of dictionaries in the MMPR prompt format."""

    kind: Literal["python"]
    target: str
    """"module:function"; running a recipe with such a source runs that code."""
    arguments: dict[str, Any] = {}
    """Keyword arguments that the function is called with."""
    root: str = "."
    """Folder below which every image lies, relative to the recipe."""


Source = Annotated[
    DigitsSource | EasyVqaSource | JsonlSource | MmprSource | HubSource | PythonSource,
    Field(discriminator="kind"),
]


# --- the stages ------------------------------------------------------------------------------------------------------


class ModelTable(Table):
    """The policy at step 0."""

    path: str = "mixpo:tiny"
    """Folder (relative to the recipe) or hub id of a `transformers` image-text-to-text model; "mixpo:tiny" is the bundled one."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights while sampling and when saved; training keeps float32 copies of those it changes."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    trust_remote_code: bool = False
    """Runs Python code that comes with the model. Only for sources you trust."""


class ImageTable(Table):
    """Applied to every image before any engine, so that sampling, training and evaluation see the same pixels."""

    max_pixels: int = Field(default=4_000_000, ge=1)
    """A larger image is scaled down to this many pixels, keeping its proportions."""
    max_side: int = Field(default=10_000, ge=1)
    """An image with a longer side is refused (and listed)."""
    min_side: int = Field(default=2, ge=1)
    """An image with a shorter side is refused (and listed)."""


class PromptText(Table):
    """A prompt of your own."""

    template: str
    """Text with one `{question}`."""
    style: Style
    """How the final answer is marked."""

    @model_validator(mode="after")
    def _has_slot(self) -> PromptText:
        if self.template.count("{question}") != 1:
            raise ValueError("template must contain {question} exactly once")
        return self


PromptName = str | PromptText


class PromptTable(Table):
    """What the model is told around a question: the name of a built-in prompt, or a table with template and style."""

    cot: PromptName = "cot"
    """For chain-of-thought answers."""
    direct: PromptName = "direct"
    """For direct answers (evaluation only)."""
    open: PromptName = "plain"
    """For questions without an answer."""
    by_domain: dict[str, PromptName] = {}
    """Another chain-of-thought prompt for the questions of a domain."""

    @model_validator(mode="after")
    def _known(self) -> PromptTable:
        for name in (self.cot, self.direct, self.open, *self.by_domain.values()):
            if isinstance(name, str) and name not in PROMPTS:
                raise ValueError(f"unknown prompt {name!r}{did_you_mean(name, PROMPTS)}; built in: {', '.join(sorted(PROMPTS))}")
        return self


class SampleTable(Table):
    """How many answers are sampled for each question, and how."""

    engine: Literal["transformers", "scripted"] = "transformers"
    """What writes the answers: the model in this process, or "scripted", which reads them from a file."""
    script: str | None = None
    """JSONL of answers for the scripted engine, relative to the recipe."""
    n: int = Field(default=8, ge=1)
    """Answers for each question."""
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    """0 keeps every token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """1 keeps every token."""
    max_new_tokens: int = Field(default=512, ge=1)
    batch_size: int = Field(default=32, ge=1)
    """Questions sampled together (each with n answers)."""


class VerifyTable(Table):
    """How answers are compared with the ground truth."""

    tolerance: float = Field(default=1e-6, ge=0)
    """Relative difference up to which two numbers are equal."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Wall-clock limit of one formula comparison; past it the verdict is undecided."""
    workers: int = Field(default=2, ge=1)
    """Processes that compare formulas."""


class PairsTable(Table):
    """How preference pairs are made from judged answers."""

    correctness: bool = True
    """Pairs of a correct and a wrong answer to the same question."""
    max_per_question: int = Field(default=15, ge=1)
    """At most this many correctness pairs for each question."""
    format_negatives: bool = True
    """Answers without a clear final answer count as rejected (tagged "format")."""
    entailment: bool = True
    """Skip a pair when the correct final answer stands inside the wrong one."""
    max_length_ratio: float = Field(default=0.0, ge=0)
    """Skip a pair whose longer side has more than this many times the tokens of the shorter; 0 keeps all."""
    dropout_ntp: bool = True
    """Pairs for questions without an answer: the rejected side is completed without the image."""
    dropout_ratio: float = Field(default=0.5, gt=0, lt=1)
    """Share of the chosen response that the rejected one keeps."""
    max_dropout_per_question: int = Field(default=4, ge=1)
    """At most this many DropoutNTP pairs for each question."""
    drop_blind: bool = True
    """Leave out continuations that speak of a missing image instead of answering."""


class LossTable(Table):
    """Weights of the mixed loss (paper, section 4): w_p preference + w_q quality + w_g generation."""

    beta: float = Field(default=0.1, gt=0)
    """A response's reward is beta times its log-ratio to the reference."""
    preference: float = Field(default=0.8, ge=0)
    """w_p, of the preference term (DPO, or what the objective has in its place)."""
    quality: float = Field(default=0.2, ge=0)
    """w_q, of the BCO term."""
    generation: float = Field(default=1.0, ge=0)
    """w_g, of the SFT term."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """The share of pairs that is taken to be the wrong way round, in "cdpo" and "robust_dpo"; other objectives do not use it."""


class TrainTable(Table):
    """Preference optimization of the policy."""

    objective: str = "mpo"
    """A name from the table of objectives."""
    baselines: tuple[str, ...] = ()
    """Further objectives trained on the first round's pairs from the same start, to compare with."""
    rounds: int = Field(default=1, ge=1)
    """On-policy rounds: each samples from the last round's model, builds pairs and trains on them."""
    loss: LossTable = LossTable()
    learning_rate: float = Field(default=5e-6, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of all steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.05, ge=0)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=256, ge=1)
    """Pairs in one optimizer step."""
    tokens_per_batch: int = Field(default=8192, ge=1)
    """Tokens that pass through the model at once, padding included; larger steps accumulate gradients."""
    pairs_per_group: int = Field(default=0, ge=0)
    """At most this many pairs of a question stay together when their order is drawn; 0 keeps all, which is fastest."""
    max_length: int = Field(default=6144, ge=1)
    """Pairs with a longer prompt + response are left out, and counted. Nothing is ever cut."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    freeze: tuple[Literal["vision", "projector", "llm"], ...] = ()
    """Parts that keep their weights."""
    gradient_checkpointing: bool = False
    """Less memory for about a third more time."""
    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    log_every: int = Field(default=1, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides the run's own records."""

    @model_validator(mode="after")
    def _known(self) -> TrainTable:
        names = (self.objective, *self.baselines)
        for name in (name for name in names if name not in OBJECTIVES):
            raise ValueError(f"unknown objective {name!r}{did_you_mean(name, OBJECTIVES)}; known: {', '.join(OBJECTIVES)}")
        if len(set(names)) != len(names):
            raise ValueError("objective and baselines must differ from each other")
        return self


class EvaluationSet(Table):
    """A named set of questions with answers."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    source: Source


class EvaluateTable(Table):
    """Greedy and sampled accuracy of every model on held-out questions."""

    sets: tuple[EvaluationSet, ...] = ()
    modes: tuple[Literal["cot", "direct"], ...] = ("cot", "direct")
    max_new_tokens: int = Field(default=512, ge=1)
    batch_size: int = Field(default=128, ge=1)
    samples: int = Field(default=0, ge=0)
    """Also sample this many chain-of-thought answers per question, for the mean accuracy of sampled answers."""

    @model_validator(mode="after")
    def _distinct(self) -> EvaluateTable:
        if len({s.name for s in self.sets}) != len(self.sets):
            raise ValueError("two evaluation sets have the same name")
        return self


class ReportTable(Table):
    """The report of the run."""

    title: str = "mixpo run"
    examples: int = Field(default=12, ge=0)
    """Pairs shown with their images."""


class Recipe(Table):
    """A whole run."""

    seed: int = 0
    """Every random choice is keyed by this seed and what it decides."""
    shard_size: int = Field(default=64, ge=1)
    """Questions in one record file: the unit of resume."""
    max_error_rate: float = Field(default=0.05, ge=0, le=1)
    """A stage in which a larger share of questions fails ends with exit status 1 (the others are kept)."""
    source: Source
    model: ModelTable = ModelTable()
    image: ImageTable = ImageTable()
    prompt: PromptTable = PromptTable()
    sample: SampleTable = SampleTable()
    verify: VerifyTable = VerifyTable()
    pairs: PairsTable = PairsTable()
    train: TrainTable = TrainTable()
    evaluate: EvaluateTable = EvaluateTable()
    report: ReportTable = ReportTable()


# --- reading ---------------------------------------------------------------------------------------------------------


def load(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are "table.key=value" with TOML values (bare words are strings).

    Raises RecipeError naming the file, line, table and key, with the nearest known key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _apply(data, override)
    return parse(data, str(path), text)


def parse(data: dict[str, Any], name: str, text: str = "") -> Recipe:
    """Check recipe data; `name` and `text` serve the error messages."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError("\n".join(describe(Recipe, name, text, problem) for problem in error.errors())) from None


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not all(parts := key.strip().split(".")):
        raise RecipeError(f"--set {override}: write it as table.key=value, for example --set train.learning_rate=1e-5")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    for part in parts[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise RecipeError(f"--set {override}: {part!r} is not a table")
    data[parts[-1]] = value
