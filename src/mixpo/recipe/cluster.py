"""[cluster]: where shards are made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mixpo.recipe.base import Table


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
