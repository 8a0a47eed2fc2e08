"""Where work is done: servers ([sample.server], [[evaluate.served]], [evaluate.judge]) and clusters ([cluster])."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from mixpo.objectives import OBJECTIVES
from mixpo.recipe.base import CHOOSES_STAGES, NOTHING, Decides, Table

VARIABLE = r"^([A-Za-z_][A-Za-z0-9_]*)?$"
"""Name of an environment variable, or nothing. A key itself seldom fits, so that none gets into a recipe by mistake."""

_KEY_ARGUMENT = re.compile(r"(?i)--?(?:[\w-]*[_-])?(?:api[_-]?key|token|password|secret)(?:=|$)")


VERDICTS = Decides("verify", "evaluate")


class Endpoint(Table):
    """An OpenAI-compatible endpoint and the limits of its client."""

    urls: Annotated[list[str], NOTHING] = Field(default=[])
    """Base URLs such as "http://10.0.0.5:8000/v1". Load is balanced over several; one that dies is skipped until it is back."""
    model: Annotated[str, Decides("sample", "answer")] = ""
    """Model name in requests; by default the server's only model, or the model folder if mixpo starts the server."""
    api_key_env: Annotated[str, NOTHING] = Field(default="", pattern=VARIABLE)
    """Name of the environment variable that holds the key, never the key itself."""
    in_flight: Annotated[int, NOTHING] = Field(default=32, ge=1)
    """Concurrent requests over all servers; also the number of questions whose images are in memory."""
    timeout_s: Annotated[float, NOTHING] = Field(default=600.0, gt=0)
    """Timeout of one request, from start to end."""
    retries: Annotated[int, NOTHING] = Field(default=4, ge=0)
    """Retries before a question fails. An unreachable or busy server does not count."""
    patience_s: Annotated[float, NOTHING] = Field(default=600.0, gt=0)
    """How long to wait for a server that is unreachable, busy or still loading its model, and for its replies to all test requests."""

    @model_validator(mode="after")
    def _addresses(self) -> Self:
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f'{url!r} is no address; write it as "http://host:port/v1"')
            if parts.username or parts.password or parts.query:
                raise ValueError(f"the address of {parts.hostname} must hold no password or query; name a variable in api_key_env")
        return self


class ServerTable(Endpoint):
    """An OpenAI-compatible server (vLLM, SGLang, LMDeploy, llama.cpp, `transformers serve`), for sample.engine = "openai".

    Give `urls` of running servers, or let mixpo start one with `serve` or `start`.
    """

    serve: Annotated[Literal["transformers"] | None, Decides("sample", "answer")] = None
    """Start `transformers serve` with the model on a free local port, and stop it with the run."""
    start: Annotated[list[str], Decides("sample", "answer")] = Field(default=[])
    """Start this program: a list of arguments, no shell. `{model}`, `{host}` and `{port}` are filled in. Running the recipe runs
    the program; it is printed before it starts."""
    same_model: Annotated[bool, Decides("sample", "answer")] = True
    """The server holds the weights of model.path. If false, another model answers and only its text is used."""

    @model_validator(mode="after")
    def _one_way(self) -> ServerTable:
        if len([way for way in (self.urls, self.serve, self.start) if way]) > 1:
            raise ValueError("give only one of urls, serve and start")
        if any(_KEY_ARGUMENT.match(word) for word in self.start):
            raise ValueError("start must hold no key: a server that mixpo starts listens on this machine only and needs none")
        if self.start and not any("{port}" in word for word in self.start):
            raise ValueError("start must hold {port}: mixpo chooses a free one")
        return self

    @property
    def starts(self) -> bool:
        """Whether mixpo starts the server itself."""
        return bool(self.serve or self.start)


class VllmTable(Table):
    """How vLLM runs in this process, for engine = "vllm". Affects speed and memory; another split of the sums changes rounding only."""

    tensor_parallel_size: Annotated[int, NOTHING] = Field(default=1, ge=1)
    """GPUs that share the model, each with a part of every layer."""
    gpu_memory_utilization: Annotated[float | None, NOTHING] = Field(default=None, gt=0, le=1)
    """Share of each GPU's memory that vLLM takes; unset leaves it to vLLM."""
    max_model_len: Annotated[int | None, NOTHING] = Field(default=None, ge=1)
    """Longest prompt with its response, in tokens; unset takes the model's limit, whose cache may not fit."""


class ServedModel(Endpoint):
    """Another model behind a server or a commercial endpoint, as an additional row of the results. Needs no local weights."""

    name: Annotated[str, CHOOSES_STAGES] = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Its name in the results."""
    urls: Annotated[list[str], NOTHING] = Field(min_length=1)
    """Base URLs such as "https://api.openai.com/v1". Load is balanced over several."""
    model: Annotated[str, Decides("answer")] = Field(min_length=1)
    """Name of the model at the endpoint, with its date if it has one."""

    @model_validator(mode="after")
    def _own_name(self) -> ServedModel:
        if self.name.partition("-round-")[0] in ("base", *OBJECTIVES):
            raise ValueError(f"{self.name!r} is the name of a model of this run; take another")
        return self

    @property
    def server(self) -> ServerTable:
        """The same as a server that holds another model than model.path."""
        return ServerTable(**self.model_dump(exclude={"name"}), same_model=False)


class JudgeEndpoint(Endpoint):
    """A language model behind an OpenAI-compatible endpoint that grades responses."""

    urls: Annotated[list[str], NOTHING] = Field(default=["https://api.openai.com/v1"], min_length=1)
    """Base URLs such as "http://127.0.0.1:8000/v1". Load is balanced over several."""
    model: Annotated[str, Decides("evaluate")] = Field(min_length=1)
    """Name of the model at the endpoint, with its date if it has one."""
    api_key_env: Annotated[str, NOTHING] = Field(default="OPENAI_API_KEY", pattern=VARIABLE)
    """Name of the environment variable that holds the key, never the key itself. A local server needs none."""
    in_flight: Annotated[int, NOTHING] = Field(default=4, ge=1)
    """Concurrent requests over all servers."""
    timeout_s: Annotated[float, NOTHING] = Field(default=120.0, gt=0)
    """Timeout of one request, from start to end."""
    retries: Annotated[int, NOTHING] = Field(default=6, ge=0)
    """Retries before the judge counts as failed. An unreachable or busy server does not count."""
    temperature: Annotated[float, Decides("evaluate")] = Field(default=0.0, ge=0)
    """Temperature of the judge; 0 makes it repeatable."""
    max_tokens: Annotated[int, Decides("evaluate")] = Field(default=1024, ge=1)
    """Maximum tokens of a reply."""
    attempts: Annotated[int, Decides("evaluate")] = Field(default=3, ge=1)
    """Maximum requests per response until the reply can be parsed; the temperature rises by 0.5 each time."""


class JudgeTable(JudgeEndpoint):
    """A language model behind an OpenAI-compatible endpoint that grades free-form responses."""

    prompts: Annotated[str, Decides("evaluate", by_content=True)] = ""
    """Folder, relative to the recipe, with your own judge prompts (mmvet.txt, llava_bench.txt, mmhal.txt, and for extractor = "judge"
    mathvista.txt, mathvision.txt); a system message in a file such as llava_bench.system.txt."""


class VerdictJudgeTable(JudgeEndpoint):
    """A language model that decides verdicts which the rules leave undecided. Each request holds question, reference answer and answer."""

    sources: Annotated[tuple[str, ...], VERDICTS] = ()
    """Sources and domains (`*` matches anything) whose verdicts it decides all, as for reference answers in sentences."""
    agreement: Annotated[float, Decides("verify")] = Field(default=0.02, ge=0, le=1)
    """Share of the verdicts by rules that it is asked about too; how often it agrees is printed, and the rules decide."""
    prompt: Annotated[str, Decides("verify", "evaluate", by_content=True)] = ""
    """File, relative to the recipe, with your own judge prompt: {question}, {reference} and {answer} are filled in, and the reply must be
    "correct", "wrong" or "unclear"."""
    model: Annotated[str, VERDICTS] = Field(min_length=1)
    """Name of the model at the endpoint, with its date if it has one."""
    temperature: Annotated[float, VERDICTS] = Field(default=0.0, ge=0)
    """Temperature of the judge; 0 makes it repeatable."""
    max_tokens: Annotated[int, VERDICTS] = Field(default=1024, ge=1)
    """Maximum tokens of a reply."""
    attempts: Annotated[int, VERDICTS] = Field(default=3, ge=1)
    """Maximum requests per answer until the reply can be parsed; the temperature rises by 0.5 each time."""


class ClusterTable(Table):
    """Where responses are sampled (also in evaluation) and verified. Affects speed, never results."""

    kind: Annotated[Literal["none", "ray"], NOTHING] = "none"
    """"ray" distributes the shards of these stages over the actors of a Ray cluster; all machines must see the run directory."""
    address: Annotated[str, NOTHING] = ""
    """Address of a running cluster, as for `ray.init`; "" uses RAY_ADDRESS if set, otherwise starts Ray on this machine."""
    actors: Annotated[int, NOTHING] = Field(default=1, ge=1)
    """Processes that make shards, each with its own model while sampling."""
    cpus_per_actor: Annotated[float, NOTHING] = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for each actor; leave at least one CPU of the cluster free."""
    gpus_per_actor: Annotated[float, NOTHING] = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for each actor."""
    shards_per_task: Annotated[int, NOTHING] = Field(default=1, ge=1)
    """Shards per task; a lost actor loses at most these."""
