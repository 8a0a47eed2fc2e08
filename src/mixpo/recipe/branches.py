"""[pairs.branches]: where sampled responses are cut, and how many continuations each place gets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mixpo.recipe.base import Decides, Table

BRANCH = Decides("branch")

PlaceRule = Literal["sentences", "ratios", "surprisal"]


class BranchesTable(Table):
    """Step-level pairs: sampled responses are cut at several places and continued with the image. Where continuations of one beginning end
    both right and wrong, they make pairs. Off without this table."""

    at: Annotated[tuple[PlaceRule, ...], BRANCH] = Field(default=("sentences",), min_length=1)
    """Where responses are cut: after "sentences" and lines, at "ratios" of their tokens, or before the tokens of highest "surprisal"
    (-log p; where the engine returns log-probs)."""
    ratios: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], BRANCH] = Field(default=(0.25, 0.5, 0.75), min_length=1)
    """For at = ["ratios"]: the shares of a response's tokens that are kept."""
    max_places: Annotated[int, BRANCH] = Field(default=4, ge=1)
    """Maximum places per response; of more, evenly spaced ones are used."""
    continuations: Annotated[int, BRANCH] = Field(default=4, ge=2)
    """Continuations sampled from each place."""
    only_mixed: Annotated[bool, BRANCH] = True
    """Cut only responses to questions with both correct and wrong responses, not to all that have a known answer."""
    cut_responses: Annotated[Literal["any", "correct", "wrong"], BRANCH] = "any"
    """Responses that are cut: "any" with a decided verdict, only "correct", or only "wrong" ones (also without a final answer)."""
    max_responses: Annotated[int, BRANCH] = Field(default=2, ge=1)
    """Maximum responses per question that are cut, drawn at random from those that finished and differ."""
    max_per_place: Annotated[int, Decides("pair")] = Field(default=4, ge=1)
    """Maximum pairs of continuations of one beginning."""

    @model_validator(mode="after")
    def _each_rule_once(self) -> BranchesTable:
        if len(set(self.at)) < len(self.at):
            raise ValueError("at: names a rule twice; name each once")
        return self

    def indices(self, response: int, place: int) -> range:
        """`Response.index` of the continuations from a place. place: its number in the response, from 0."""
        first = (response * self.max_places + place) * self.continuations
        return range(first, first + self.continuations)

    def response_of(self, index: int) -> int:
        """`Response.index` of the response that continuation `index` begins with."""
        return index // (self.max_places * self.continuations)
