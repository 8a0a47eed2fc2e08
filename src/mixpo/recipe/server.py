"""Where work is done: servers ([sample.server], [[evaluate.served]], [evaluate.judge]) and clusters ([cluster])."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from mixpo.objectives import OBJECTIVES
from mixpo.recipe.base import Table


class Endpoint(Table):
    """An OpenAI-compatible server, and how it is asked."""

    urls: list[str] = Field(default=[])
    """Base addresses such as "http://10.0.0.5:8000/v1". Several are used as equals; one that dies is left out until it is back."""
    model: str = ""
    """The name that requests carry; by default what the server calls its only model, or the folder where mixpo starts the server."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key, never the key itself."""
    in_flight: int = Field(default=32, ge=1)
    """Requests under way at a time, over all servers; also how many questions have their images in memory."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait for one request, from start to end."""
    retries: int = Field(default=4, ge=0)
    """Tries after the first before a question fails. A server that cannot be reached or says that it is busy costs no try."""
    patience_s: float = Field(default=600.0, gt=0)
    """How long to wait for a server that cannot be reached, is busy or has yet to load its model."""

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

    Give `urls` of servers that run, or let mixpo start one: `serve` or `start`.
    """

    serve: Literal["transformers"] | None = None
    """mixpo starts `transformers serve` with the model on a free port of this machine, and ends it with the run."""
    start: list[str] = Field(default=[])
    """mixpo starts this program: a list of arguments, no shell. `{model}`, `{host}` and `{port}` are filled in. Whoever runs the recipe
    runs the program; it is shown before it starts."""
    same_model: bool = True
    """The server holds the weights of model.path. False: another model answers, and only its text is used."""

    @model_validator(mode="after")
    def _one_way(self) -> ServerTable:
        if len([way for way in (self.urls, self.serve, self.start) if way]) > 1:
            raise ValueError("give only one of urls, serve and start")
        if self.start and not any("{port}" in word for word in self.start):
            raise ValueError("start must hold {port}: mixpo chooses a free one")
        return self

    @property
    def starts(self) -> bool:
        """Whether mixpo starts the server itself."""
        return bool(self.serve or self.start)


class ServedModel(Endpoint):
    """Another model behind a server or a commercial endpoint, as a row of its own in the table of scores. Its weights are nowhere here."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """What the table of scores calls it."""
    urls: list[str] = Field(min_length=1)
    """Base addresses such as "https://api.openai.com/v1". Several are used as equals."""
    model: str = Field(min_length=1)
    """The name of the model at the endpoint, with its date where it has one."""

    @model_validator(mode="after")
    def _own_name(self) -> ServedModel:
        if self.name.partition("-round-")[0] in ("base", *OBJECTIVES):
            raise ValueError(f"{self.name!r} is the name of a model of this run; take another")
        return self

    @property
    def server(self) -> ServerTable:
        """The same as a server that holds another model than model.path."""
        return ServerTable(**self.model_dump(exclude={"name"}), same_model=False)


class ClusterTable(Table):
    """Where answers are sampled (also those of evaluations) and verified. Nothing here changes a result, only how soon it comes."""

    kind: Literal["none", "ray"] = "none"
    """"ray" spreads the shards of these stages over the actors of a Ray cluster; all machines must see the run directory."""
    address: str = ""
    """Of a running cluster, as for `ray.init`; "" uses RAY_ADDRESS if that is set, otherwise starts Ray on this machine."""
    actors: int = Field(default=1, ge=1)
    """Processes that make shards, each with a model of its own while it samples."""
    cpus_per_actor: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for each actor; leave at least one CPU of the cluster free."""
    gpus_per_actor: float = Field(default=0.0, ge=0)
    """GPUs that Ray reserves for each actor."""
    shards_per_task: int = Field(default=1, ge=1)
    """Shards that an actor gets at once; a lost actor loses at most these."""
