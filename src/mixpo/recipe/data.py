"""From the model to the pairs: [model], [image], [prompt], [sample], [verify] and [pairs]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mixpo.prompts import PROMPTS, Style
from mixpo.recipe.base import Table
from mixpo.recipe.errors import did_you_mean
from mixpo.recipe.server import ServerTable


class ModelTable(Table):
    """The base model: the policy at step 0."""

    path: str = "mixpo:tiny"
    """Folder (relative to the recipe) or Hub id of a `transformers` image-text-to-text model; "mixpo:tiny" is the bundled one."""
    revision: str | None = None
    """Commit, tag or branch of a Hub id."""
    adapter: str | None = None
    """Folder (relative to the recipe) or Hub id of a `peft` LoRA adapter; the base model is then the model with this adapter."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights when sampling and when saved; training keeps float32 master weights."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the model; "auto" uses a GPU if there is one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources you trust."""


class ImageTable(Table):
    """Image preprocessing, applied before any engine, so that sampling, training and evaluation see the same pixels."""

    max_pixels: int = Field(default=4_000_000, ge=1)
    """Larger images are scaled down to this many pixels, keeping the aspect ratio."""
    min_pixels: int = Field(default=0, ge=0)
    """Smaller images are scaled up to this many pixels, keeping the aspect ratio."""
    tiles: int = Field(default=0, ge=0)
    """Maximum number of tiles per image, for processors that tile (such as InternVL's); 0 keeps the processor's setting."""
    max_side: int = Field(default=10_000, ge=1)
    """Images with a longer side are skipped and listed."""
    min_side: int = Field(default=2, ge=1)
    """Images with a shorter side are skipped and listed."""

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
    """How the final answer is marked in the response."""

    @model_validator(mode="after")
    def _has_slot(self) -> PromptText:
        if self.template.count("{question}") != 1:
            raise ValueError("template must contain {question} exactly once")
        return self


PromptName = str | PromptText


class PromptTable(Table):
    """Prompt templates: the name of a built-in prompt, or a table with template and style."""

    cot: PromptName = "cot"
    """For chain-of-thought responses."""
    direct: PromptName = "direct"
    """For direct responses (evaluation only)."""
    open: PromptName = "plain"
    """For open questions."""
    by_domain: dict[str, PromptName] = Field(default={})
    """Chain-of-thought prompts by domain."""
    by_source: dict[str, PromptName] = Field(default={})
    """The same by source name (`*` matches anything); takes precedence over `by_domain`."""

    @model_validator(mode="after")
    def _known(self) -> PromptTable:
        for name in (self.cot, self.direct, self.open, *self.by_domain.values(), *self.by_source.values()):
            if isinstance(name, str) and name not in PROMPTS:
                raise ValueError(f"unknown prompt {name!r}{did_you_mean(name, PROMPTS)}; built in: {', '.join(sorted(PROMPTS))}")
        return self


class SampleTable(Table):
    """How responses are sampled."""

    engine: Literal["transformers", "openai", "vllm", "scripted"] = "transformers"
    """What generates responses: the model in process, a server ([sample.server]), vLLM in process, or "scripted", which
    reads them from a file."""
    server: ServerTable = ServerTable()
    """The server for engine = "openai"."""
    script: str | None = None
    """JSONL file of responses for the scripted engine, relative to the recipe."""
    n: int = Field(default=8, ge=1)
    """Responses per question."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature. Responses must differ to make pairs."""
    top_k: int = Field(default=0, ge=0)
    """Sample from the k likeliest tokens; 0 means all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 means all tokens."""
    stop: list[str] = Field(default=[], max_length=4)
    """Texts that end a response, also in evaluation. The response ends before them, with an end-of-turn token. At most 4, the limit of
    most servers."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Maximum tokens of a response. Truncated responses are counted and never chosen."""
    batch_size: int = Field(default=32, ge=1)
    """Questions sampled together, each with n responses; fewer in process if prompts, images and responses would not fit into free
    memory."""

    @model_validator(mode="after")
    def _complete(self) -> SampleTable:
        if not all(self.stop):
            raise ValueError("stop: a text that ends an answer cannot be empty")
        if self.engine == "openai" and not (self.server.urls or self.server.starts):
            raise ValueError('engine = "openai" needs a server; set sample.server.urls, .serve or .start')
        return self


RuleName = Literal["vqa", "relaxed", "anls", "choice", "number", "formula", "text", "yes_no"]


class VerifyTable(Table):
    """How responses are compared with the ground truth."""

    rules: dict[str, RuleName] = Field(default={})
    """Rules by source or domain name (`*` matches anything): "vqa", "relaxed", "anls" or an answer kind."""
    mmpr_rules: bool = False
    """Use the rules of the data sets of the released MMPR prompts, unless `rules` sets another."""

    tolerance: float = Field(default=1e-6, ge=0)
    """Relative difference up to which two numbers are equal."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Timeout of one formula comparison; the verdict is then undecided."""
    workers: int = Field(default=2, ge=1)
    """Processes that compare formulas."""


BalanceBy = Literal["origin", "domain", "source", "difficulty"]


class PairsTable(Table):
    """How preference pairs are made from verified responses."""

    correctness: bool = True
    """Make pairs of a correct and a wrong response to the same question."""
    max_per_question: int = Field(default=15, ge=1)
    """Maximum correctness pairs per question."""
    format_negatives: bool = True
    """Use responses without a clear final answer as rejected (tagged "format")."""
    entailment: bool = True
    """Drop a pair if the correct final answer is contained in the wrong one."""
    max_length_ratio: float = Field(default=0.0, ge=0)
    """Drop a pair if its longer side has more than this many times the tokens of the shorter; 0 keeps all."""
    dropout_ntp: bool = True
    """Make DropoutNTP pairs for open questions: the rejected side is continued without the image."""
    dropout_ratio: float = Field(default=0.5, gt=0, lt=1)
    """Share of the chosen response that the rejected one keeps as its prefix."""
    max_dropout_per_question: int = Field(default=4, ge=1)
    """Maximum DropoutNTP pairs per question."""
    drop_blind: bool = True
    """Drop continuations that mention a missing image instead of answering."""
    max_similarity: float = Field(default=1.0, ge=0, le=1)
    """Of correct (or wrong) responses that share more than this part of their word trigrams, only one is used; 1 uses all."""
    rationales: bool = False
    """If no response is correct, use the question's `rationale` (a column of the source) as chosen."""
    balance: tuple[BalanceBy, ...] = ()
    """Subsample pairs of large classes; a class is a combination of these values over the whole data set."""
    balance_to: float = Field(default=1.0, gt=0)
    """Maximum size of a class, as a multiple of the mean class size."""
