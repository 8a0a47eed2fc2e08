"""From the model to the pairs: [model], [image], [prompt], [sample], [verify] and [pairs]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mixpo.prompts import PROMPTS, Style
from mixpo.recipe.base import Table
from mixpo.recipe.errors import did_you_mean
from mixpo.recipe.server import ServerTable


class ModelTable(Table):
    """The policy at step 0."""

    path: str = "mixpo:tiny"
    """Folder (relative to the recipe) or hub id of a `transformers` image-text-to-text model; "mixpo:tiny" is the bundled one."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    adapter: str | None = None
    """Folder (relative to the recipe) or hub id of a LoRA adapter of `peft`; the policy at step 0 is then the model with this adapter."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights while sampling and when saved; training keeps float32 copies of those it changes."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; "auto" takes a GPU if there is one."""
    trust_remote_code: bool = False
    """Runs Python code that comes with the model. Only for sources you trust."""


class ImageTable(Table):
    """Applied to every image before any engine, so that sampling, training and evaluation see the same pixels."""

    max_pixels: int = Field(default=4_000_000, ge=1)
    """A larger image is scaled down to this many pixels, keeping its proportions."""
    min_pixels: int = Field(default=0, ge=0)
    """A smaller image is scaled up to this many pixels, keeping its proportions."""
    tiles: int = Field(default=0, ge=0)
    """Most tiles into which the model's processor may cut an image (InternVL and others that count tiles); 0 leaves its own setting."""
    max_side: int = Field(default=10_000, ge=1)
    """An image with a longer side is refused (and listed)."""
    min_side: int = Field(default=2, ge=1)
    """An image with a shorter side is refused (and listed)."""

    @model_validator(mode="after")
    def _ordered(self) -> ImageTable:
        if self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels must not exceed max_pixels")
        return self


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
    by_domain: dict[str, PromptName] = Field(default={})
    """Another chain-of-thought prompt for the questions of a domain."""
    by_source: dict[str, PromptName] = Field(default={})
    """The same by the name of a source (`*` stands for anything); comes before `by_domain`."""

    @model_validator(mode="after")
    def _known(self) -> PromptTable:
        for name in (self.cot, self.direct, self.open, *self.by_domain.values(), *self.by_source.values()):
            if isinstance(name, str) and name not in PROMPTS:
                raise ValueError(f"unknown prompt {name!r}{did_you_mean(name, PROMPTS)}; built in: {', '.join(sorted(PROMPTS))}")
        return self


class SampleTable(Table):
    """How many answers are sampled for each question, and how."""

    engine: Literal["transformers", "openai", "vllm", "scripted"] = "transformers"
    """What writes the answers: the model in this process, a server ([sample.server]), vLLM in this process, or "scripted", which
    reads them from a file."""
    server: ServerTable = ServerTable()
    """Which server answers where engine = "openai"."""
    script: str | None = None
    """JSONL of answers for the scripted engine, relative to the recipe."""
    n: int = Field(default=8, ge=1)
    """Answers for each question."""
    temperature: float = Field(default=1.0, gt=0)
    """How varied the answers are; they must differ to give pairs."""
    top_k: int = Field(default=0, ge=0)
    """0 keeps every token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """1 keeps every token."""
    stop: list[str] = Field(default=[], max_length=4)
    """Texts that end an answer, in evaluation too. What is kept ends before them, as text with an end of turn; at most 4, the limit of most
    servers."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Tokens of an answer at most. One that reaches them is cut, counted, and never chosen."""
    batch_size: int = Field(default=32, ge=1)
    """Questions sampled together (each with n answers). In this process fewer, where the tokens of prompts, images and answers would not
    fit into free memory."""

    @model_validator(mode="after")
    def _complete(self) -> SampleTable:
        if not all(self.stop):
            raise ValueError("stop: a text that ends an answer cannot be empty")
        if self.engine == "openai" and not (self.server.urls or self.server.starts):
            raise ValueError('engine = "openai" needs a server; set sample.server.urls, .serve or .start')
        return self


RuleName = Literal["vqa", "relaxed", "anls", "choice", "number", "formula", "text", "yes_no"]


class VerifyTable(Table):
    """How answers are compared with the ground truth."""

    rules: dict[str, RuleName] = Field(default={})
    """Rules of data sets: by the name of a source or a domain (`*` stands for anything) to "vqa", "relaxed", "anls" or an answer kind."""
    mmpr_rules: bool = False
    """For the released MMPR prompts: the rules of their data sets, where `rules` names none."""

    tolerance: float = Field(default=1e-6, ge=0)
    """Relative difference up to which two numbers are equal."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Wall-clock limit of one formula comparison; past it the verdict is undecided."""
    workers: int = Field(default=2, ge=1)
    """Processes that compare formulas."""


BalanceBy = Literal["origin", "domain", "source", "difficulty"]


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
    max_similarity: float = Field(default=1.0, ge=0, le=1)
    """Of right (or wrong) answers to a question that share more than this part of their three-word runs one is used; 1 uses all."""
    rationales: bool = False
    """Where no answer is right, the question's `rationale` (a column of the source) is the chosen one."""
    balance: tuple[BalanceBy, ...] = ()
    """Thin out the pairs of classes that are too large; a class is a combination of these values over the whole data set."""
    balance_to: float = Field(default=1.0, gt=0)
    """A class keeps about this many times the mean number of pairs of a class at most."""
