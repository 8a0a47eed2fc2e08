"""From the model to the pairs: [model], [image], [prompt], [sample], [verify] and [pairs]."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Protocol

from pydantic import AfterValidator, Field, model_validator

from mixpo.prompts import PROMPTS, Style
from mixpo.recipe.base import NOTHING, Decides, Table, first_repeated
from mixpo.recipe.branches import BranchesTable
from mixpo.recipe.errors import did_you_mean
from mixpo.recipe.server import VERDICTS, ServerTable, VerdictJudgeTable, VllmTable

MODEL = Decides("sample", "reference", "train", "answer", "text", by_content=True)
"""Stages know a model by the digest of its files."""
PIXELS = Decides("source", "sample", "reference", "train", "answer")
ASKED = Decides("sample", "verify", "reference", "train", "answer", "evaluate", by_content=True)
"""Stages know a prompt by its text and style."""
OPEN = Decides("sample", "reference", "train", "answer", "evaluate", by_content=True)
"""Responses to open questions get no verdicts."""
DECODING = Decides("sample", "answer")


class ModelTable(Table):
    """The base model: the policy at step 0."""

    path: Annotated[str, MODEL] = "mixpo:tiny"
    """Folder (relative to the recipe) or Hub id of a `transformers` image-text-to-text model; "mixpo:tiny" is the bundled one."""
    revision: Annotated[str | None, MODEL] = None
    """Commit, tag or branch of a Hub id."""
    adapter: Annotated[str | None, MODEL] = None
    """Folder (relative to the recipe) or Hub id of a `peft` LoRA adapter; the base model is then the model with this adapter."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Decides("sample", "reference", "train", "answer", "text")] = "float32"
    """Type of the weights when sampling and when saved; training keeps float32 master weights."""
    quantization: Annotated[Literal["nf4"] | None, Decides("sample", "reference", "train", "answer", "text")] = None
    """"nf4" loads the linear layers of the text model in 4 bits (QLoRA), for [train.lora] only. Requires the extra `bitsandbytes`."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], NOTHING] = "auto"
    """Device of the model; "auto" uses a GPU if there is one."""
    trust_remote_code: Annotated[bool, NOTHING] = False
    """Run Python code that comes with the model. Only for sources you trust."""


class HasOrigin(Protocol):
    """What belongs to a source and a domain: a question, or a request for responses to one."""

    @property
    def source(self) -> str: ...

    @property
    def domain(self) -> str: ...


def is_listed(item: HasOrigin, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches the source or the domain of `item` (`*` matches anything)."""
    return any(fnmatchcase(name, pattern) for name in (item.source, item.domain) if name for pattern in patterns)


class ImageLimits(Table):
    """Other limits for the images of some sources."""

    sources: Annotated[tuple[str, ...], PIXELS] = Field(min_length=1)
    """Sources and domains (`*` matches anything) that they hold for, in every stage; of several tables the first that matches counts."""
    tiles: Annotated[int | None, PIXELS] = Field(default=None, ge=1)
    """Maximum number of tiles per image, in place of `image.tiles`."""
    max_pixels: Annotated[int | None, PIXELS] = Field(default=None, ge=1)
    """In place of `image.max_pixels`."""
    min_pixels: Annotated[int | None, PIXELS] = Field(default=None, ge=0)
    """In place of `image.min_pixels`."""


class ImageTable(Table):
    """Image preprocessing, applied before any engine, so that sampling, training and evaluation see the same pixels."""

    max_pixels: Annotated[int, PIXELS] = Field(default=4_000_000, ge=1)
    """Larger images are scaled down to this many pixels, keeping the aspect ratio."""
    min_pixels: Annotated[int, PIXELS] = Field(default=0, ge=0)
    """Smaller images are scaled up to this many pixels, keeping the aspect ratio."""
    tiles: Annotated[int, PIXELS] = Field(default=0, ge=0)
    """Maximum number of tiles per image, for processors that tile (such as InternVL's); 0 keeps the processor's setting."""
    max_side: Annotated[int, PIXELS] = Field(default=10_000, ge=1)
    """Images with a longer side are skipped and listed."""
    min_side: Annotated[int, PIXELS] = Field(default=2, ge=1)
    """Images with a shorter side are skipped and listed."""
    limits: Annotated[tuple[ImageLimits, ...], PIXELS] = ()
    """Other limits by source or domain, such as more tiles for charts and documents."""

    @model_validator(mode="after")
    def _ordered(self) -> ImageTable:
        for table in (self, *map(self._with, self.limits)):
            if table.min_pixels > table.max_pixels:
                raise ValueError("min_pixels must not exceed max_pixels")
        return self

    def of(self, item: HasOrigin) -> ImageTable:
        """The table for the images of a question or request, without `limits`."""
        limits = next((limits for limits in self.limits if is_listed(item, limits.sources)), None)
        return self._with(limits) if limits is not None else self

    def _with(self, limits: ImageLimits) -> ImageTable:
        own = limits.model_dump(exclude={"sources"}, exclude_none=True)
        return self.model_copy(update={**own, "limits": ()})


_SLOT = re.compile(r"(?:(?<![\w\\}\])^$])|(?<=\{question\}))\{([A-Za-z_]\w+)\}")
"""A word in braces of its own. After a letter, a sub- or superscript or another group it is text, as in LaTeX: \\boxed{answer}."""


class PromptText(Table):
    """A prompt of your own."""

    template: Annotated[str, ASKED]
    """Text with one `{question}`."""
    style: Annotated[Style | None, ASKED] = None
    """How the final answer is marked in the response; or give `marker` or `pattern`."""
    marker: Annotated[str, ASKED] = ""
    """Your own text in front of the final answer, such as "Result:"; the last one in a response counts, in upper or lower case."""
    pattern: Annotated[str, ASKED] = ""
    """Regular expression whose last match is the final answer, or its first group if it has one. May take 1 s per response; the verdict is
    then undecided."""

    @model_validator(mode="after")
    def _has_slot(self) -> PromptText:
        if stray := [name for name in _SLOT.findall(self.template) if name != "question"]:
            hint = did_you_mean(stray[0], ("question",))
            literal = f"for literal braces write {{ {stray[0]} }}; \\boxed{{{stray[0]}}} is text as it is"
            raise ValueError(f"template: unknown slot {{{stray[0]}}}{hint}; known: {{question}}; {literal}")
        if self.template.count("{question}") != 1:
            raise ValueError("template must contain {question} exactly once")
        return self

    @model_validator(mode="after")
    def _one_style(self) -> PromptText:
        import regex  # here, because most recipes have no pattern

        if sum(map(bool, (self.style, self.marker.strip(), self.pattern))) != 1:
            raise ValueError("say how the final answer is marked with one of style, marker and pattern")
        try:
            regex.compile(self.pattern)
        except regex.error as error:
            raise ValueError(f"pattern is not a regular expression: {error}") from None
        return self


PromptName = str | PromptText


class PromptShare(Table):
    """One of several prompts for the same questions."""

    name: Annotated[PromptName, ASKED]
    """Name of a built-in prompt, or a table with template and style."""
    share: Annotated[float, ASKED] = Field(gt=0, le=1)
    """Share of each question's responses that are sampled with it; all shares add up to 1."""


PromptMix = PromptName | tuple[PromptShare, ...]


class PromptTable(Table):
    """Prompt templates: the name of a built-in prompt, or a table with template and style. Where it says so, also a list of them with
    shares: `[{ name = "cot", share = 0.75 }, { name = "visual", share = 0.25 }]`."""

    system: Annotated[str, Decides("sample", "reference", "train", "answer", by_content=True)] = ""
    """System message of every conversation that has none of its own."""
    cot: Annotated[PromptMix, ASKED] = "cot"
    """For chain-of-thought responses; or a list with shares."""
    direct: Annotated[PromptName, Decides("answer", "evaluate", by_content=True)] = "direct"
    """For direct responses (evaluation only)."""
    open: Annotated[PromptName, OPEN] = "plain"
    """For open questions."""
    by_domain: Annotated[dict[str, PromptMix], ASKED] = Field(default={})
    """Chain-of-thought prompts, or lists with shares, by domain."""
    by_source: Annotated[dict[str, PromptMix], ASKED] = Field(default={})
    """The same by source name (`*` matches anything); takes precedence over `by_domain`."""

    @property
    def mixed(self) -> bool:
        """Whether any question is asked with several prompts."""
        return any(isinstance(entry, tuple) for entry in (self.cot, *self.by_domain.values(), *self.by_source.values()))

    @model_validator(mode="after")
    def _known(self) -> PromptTable:
        mixes = [entry for entry in (self.cot, *self.by_domain.values(), *self.by_source.values()) if isinstance(entry, tuple)]
        for mix in mixes:
            if abs(sum(part.share for part in mix) - 1) > 1e-6:
                raise ValueError(f"the shares of a list of prompts must add up to 1, not {sum(part.share for part in mix):g}")
            if twice := first_repeated(names_in(mix)):
                named = repr(twice if isinstance(twice, str) else twice.template)
                raise ValueError(f"a list of prompts names {named} twice; add up its shares")
        for name in (
            self.direct,
            self.open,
            *(name for entry in (self.cot, *self.by_domain.values(), *self.by_source.values()) for name in names_in(entry)),
        ):
            if isinstance(name, str) and name not in PROMPTS:
                raise ValueError(f"unknown prompt {name!r}{did_you_mean(name, PROMPTS)}; built in: {', '.join(sorted(PROMPTS))}")
        return self


def names_in(entry: PromptMix) -> list[PromptName]:
    """The prompts of an entry of [prompt]."""
    return [part.name for part in entry] if isinstance(entry, tuple) else [entry]


class SampleTable(Table):
    """How responses are sampled."""

    engine: Annotated[Literal["transformers", "openai", "vllm", "scripted", "file"], Decides("sample", "answer")] = "transformers"
    """What generates responses: the model in process, a server ([sample.server]), vLLM in process, "scripted" (a script of responses,
    for tests), or "file": what another tool sampled (`responses`)."""
    server: ServerTable = Field(default_factory=ServerTable)
    """The server for engine = "openai"."""
    vllm: VllmTable = Field(default_factory=VllmTable)
    """GPUs and memory for engine = "vllm"."""
    script: Annotated[str | None, Decides("sample", "answer", by_content=True)] = None
    """JSONL file of responses for the scripted engine, relative to the recipe."""
    responses: Annotated[str | None, Decides("sample", by_content=True)] = None
    """JSONL file, or folder of them, with saved responses for engine = "file", relative to the recipe."""
    n: Annotated[int, Decides("sample")] = Field(default=8, ge=1)
    """Responses per question."""
    temperature: Annotated[float, DECODING] = Field(default=1.0, gt=0)
    """Sampling temperature. Responses must differ to make pairs."""
    top_k: Annotated[int, DECODING] = Field(default=0, ge=0)
    """Sample from the k likeliest tokens; 0 means all."""
    top_p: Annotated[float, DECODING] = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 means all tokens."""
    stop: Annotated[list[str], DECODING] = Field(default=[], max_length=4)
    """Texts that end a response, also in evaluation. The response ends before them, with an end-of-turn token. At most 4, the limit of
    most servers."""
    max_new_tokens: Annotated[int, Decides("sample")] = Field(default=512, ge=1)
    """Maximum tokens of a response. Truncated responses are counted and never chosen."""
    batch_size: Annotated[int, NOTHING] = Field(default=32, ge=1)
    """Questions sampled together, each with n responses; fewer in process if prompts, images and responses would not fit into free
    memory."""

    @model_validator(mode="after")
    def _complete(self) -> SampleTable:
        if not all(self.stop):
            raise ValueError("stop: a text that ends an answer cannot be empty")
        if self.engine == "openai" and not (self.server.urls or self.server.starts):
            raise ValueError('engine = "openai" needs a server; set sample.server.urls, .serve or .start')
        if (self.engine == "file") != (self.responses is not None):
            missing = (
                "needs saved responses; set sample.responses to a JSONL file" if self.engine == "file" else "does not read sample.responses"
            )
            raise ValueError(f'engine = "{self.engine}" {missing}')
        return self


RuleName = Literal["vqa", "relaxed", "anls", "choice", "number", "formula", "text", "yes_no"]


def _is_target(value: str) -> str:
    if value and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise ValueError('must be "module:function", such as "my_checks:check"')
    return value


Target = Annotated[str, AfterValidator(_is_target)]
""""module:function", or nothing."""


class VerifyTable(Table):
    """How responses are compared with the ground truth."""

    rules: Annotated[dict[str, RuleName], VERDICTS] = Field(default={})
    """Rules by source or domain name (`*` matches anything): "vqa", "relaxed", "anls" or an answer kind."""
    mmpr_rules: Annotated[bool, VERDICTS] = False
    """Use the rules of the data sets of the released MMPR prompts, unless `rules` sets another."""

    custom: Annotated[Target | dict[str, Target], VERDICTS] = ""
    """"module:function" of your own check, or a table of them by source or domain name (`*` matches anything). Running a recipe with a
    check runs that code, in a process of its own; the module is looked for next to the recipe first."""
    custom_timeout_s: Annotated[float, VERDICTS] = Field(default=30.0, gt=0)
    """Timeout of one call of a custom check, by the clock; it is tried once more, then the verdict is undecided."""
    judge: VerdictJudgeTable | None = None
    """A language model that decides what the rules leave undecided."""
    tolerance: Annotated[float, VERDICTS] = Field(default=1e-6, ge=0)
    """Relative difference up to which two numbers are equal."""
    timeout_s: Annotated[float, VERDICTS] = Field(default=5.0, gt=0)
    """Timeout of one formula comparison; the verdict is then undecided."""
    workers: Annotated[int, NOTHING] = Field(default=2, ge=1)
    """Processes that compare formulas."""


BalanceBy = Literal["origin", "domain", "source", "difficulty"]


class PairsTable(Table):
    """How preference pairs are made from verified responses."""

    correctness: Annotated[bool, Decides("pair")] = True
    """Make pairs of a correct and a wrong response to the same question."""
    correctness_except: Annotated[tuple[str, ...], Decides("branch", "pair")] = ()
    """Sources and domains (`*` matches anything) without correctness pairs, as general VQA and documents in the paper: their short
    ground truths make good responses look wrong. With dropout_from = "all" they still give DropoutNTP pairs."""
    max_per_question: Annotated[int, Decides("pair")] = Field(default=15, ge=1)
    """Maximum correctness pairs per question."""
    across_prompts: Annotated[bool, Decides("pair")] = False
    """Also make pairs of responses that were sampled with different prompts; they are trained on with the prompt of the chosen one."""
    format_negatives: Annotated[bool, Decides("pair")] = True
    """Use responses without a clear final answer as rejected (tagged "format")."""
    min_margin: Annotated[float, Decides("pair")] = Field(default=0.1, ge=0, le=1)
    """Where `verify.custom` gives scores: any two responses make a pair if the chosen one scores higher by at least this much."""
    entailment: Annotated[bool, Decides("pair")] = True
    """Drop a pair if the correct final answer is contained in the wrong one."""
    max_length_ratio: Annotated[float, Decides("pair")] = Field(default=0.0, ge=0)
    """Drop a pair if its longer side has more than this many times the tokens of the shorter; 0 keeps all."""
    max_side_similarity: Annotated[float, Decides("pair")] = Field(default=1.0, ge=0, le=1)
    """Drop a correctness pair if the edit similarity of its two sides (in tokens) is above this; 1 keeps all. `mixpo gradients` shows
    what pairs of similar sides contribute to training. Step-level pairs are kept: their sides share a beginning."""
    dropout_ntp: Annotated[bool, Decides("continue", "pair")] = True
    """Make DropoutNTP pairs for open questions: the rejected side is continued without the image."""
    dropout_from: Annotated[Literal["open", "all"], Decides("sample", "continue", "pair")] = "open"
    """Which questions give DropoutNTP pairs: "open", those without a known answer; "all", as in the paper. Questions with an answer
    are then also asked with prompt.open, max_dropout_per_question times."""
    dropout_ratio: Annotated[float, Decides("continue")] = Field(default=0.5, gt=0, lt=1)
    """Share of the chosen response that the rejected one keeps as its prefix."""
    max_dropout_per_question: Annotated[int, Decides("continue")] = Field(default=4, ge=1)
    """Maximum DropoutNTP pairs per question."""
    drop_blind: Annotated[bool, Decides("pair")] = True
    """Drop continuations that mention a missing image instead of answering."""
    branches: BranchesTable | None = None
    """Step-level pairs of continuations that share the beginning of a sampled response."""
    max_similarity: Annotated[float, Decides("pair")] = Field(default=1.0, ge=0, le=1)
    """Of correct (or wrong) responses that share more than this part of their word trigrams, only one is used; 1 uses all."""
    rationales: Annotated[bool, Decides("pair")] = False
    """If no response is correct, use the question's `rationale` (a column of the source) as chosen."""
    balance: Annotated[tuple[BalanceBy, ...], Decides("select")] = ()
    """Subsample pairs of large classes; a class is a combination of these values over the whole data set."""
    balance_to: Annotated[float, Decides("select")] = Field(default=1.0, gt=0)
    """Maximum size of a class, as a multiple of the mean class size."""
