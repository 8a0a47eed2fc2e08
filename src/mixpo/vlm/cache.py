"""A key-value cache with room for the tokens to come, so that a step writes one column where the usual cache copies everything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer of full attention. `keys` and `values`, each (R, heads, tokens so far, width), are the front part of larger tensors."""

    keys: Tensor
    values: Tensor
    _key_room: Tensor
    _value_room: Tensor

    @classmethod
    def of(cls, layer: Any, rows: Tensor, steps: int) -> RoomyLayer:
        """The cache of `layer` at the batch positions `rows` (R,), with room for `steps` more tokens."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        made._key_room, made._value_room = (_with_room(part, rows, steps) for part in (layer.keys, layer.values))
        made._show(layer.keys.shape[-2])
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states (R, heads, new tokens, width); returns all keys and values so far."""
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        self._key_room[:, :, start:end] = key_states
        self._value_room[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order."""
        length = self.keys.shape[-2]
        self._key_room, self._value_room = self._key_room.index_select(0, beam_idx), self._value_room.index_select(0, beam_idx)
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = self._key_room[:, :, :length], self._value_room[:, :, :length]


def spread(cache: Any, rows: Tensor, steps: int) -> None:
    """Make the cache of P prompts one of R answers: row r continues prompt `rows[r]`. Other kinds of layers keep their own way to grow."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[number] = RoomyLayer.of(layer, rows, steps)
        else:
            layer.reorder_cache(rows)


def _with_room(part: Tensor, rows: Tensor, steps: int) -> Tensor:
    _, heads, length, width = part.shape
    room = torch.empty((len(rows), heads, length + steps, width), dtype=part.dtype, device=part.device)
    room[:, :, :length] = part.index_select(0, rows)
    return room
