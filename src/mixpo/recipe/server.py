"""Where the answers of a server come from: [sample.server]."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from mixpo.recipe.base import Table


class ServerTable(Table):
    """An OpenAI-compatible server (vLLM, SGLang, LMDeploy, llama.cpp, `transformers serve`), for sample.engine = "openai".

    Give `urls` of servers that run, or let mixpo start one: `serve` or `start`.
    """

    urls: list[str] = Field(default=[])
    """Base addresses such as "http://10.0.0.5:8000/v1". Several are used as equals; one that dies is left out until it is back."""
    serve: Literal["transformers"] | None = None
    """mixpo starts `transformers serve` with the model on a free port of this machine, and ends it with the run."""
    start: list[str] = Field(default=[])
    """mixpo starts this program: a list of arguments, no shell. `{model}`, `{host}` and `{port}` are filled in. Whoever runs the recipe
    runs the program; it is shown before it starts."""
    model: str = ""
    """The name that requests carry; by default what the server calls its only model, or the folder where mixpo starts the server."""
    same_model: bool = True
    """The server holds the weights of model.path. False: another model answers, and only its text is used."""
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
    def _one_way(self) -> ServerTable:
        if len([way for way in (self.urls, self.serve, self.start) if way]) > 1:
            raise ValueError("give only one of urls, serve and start")
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f'{url!r} is no address; write it as "http://host:port/v1"')
            if parts.username or parts.password or parts.query:
                raise ValueError(f"the address of {parts.hostname} must hold no password or query; name a variable in api_key_env")
        if self.start and not any("{port}" in word for word in self.start):
            raise ValueError("start must hold {port}: mixpo chooses a free one")
        return self

    @property
    def starts(self) -> bool:
        """Whether mixpo starts the server itself."""
        return bool(self.serve or self.start)
