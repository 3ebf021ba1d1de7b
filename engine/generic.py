"""The generic path of the rollout: any model of transformers, by its own forward pass and cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from engine.policy import states_and_head

if TYPE_CHECKING:
    from engine.rollout import DecodeState

# what a model calls its cache
CACHES = ("past_key_values", "cache_params")


def forward(model: Any, ids: Tensor, cache: dict, **inputs: Any) -> tuple[Tensor, dict]:
    """Logits (n,V) of the token after ids (n,L), which follow what the cache holds, and the updated cache:
    {the model's name for it: cache}. Begin with {}.
    """
    result = model(input_ids=ids, use_cache=True, **cache, **inputs)
    return result.logits[:, -1], {name: result[name] for name in CACHES if name in result}


def forward_whole(model: Any, ids: Tensor, cache: dict) -> tuple[Tensor, dict]:
    """The same without a cache: `ids` are the whole rows."""
    states, head = states_and_head(model, ids)
    return head(states[:, -1]), {}


def pad_inputs(attend: Tensor, count: int) -> dict[str, Tensor]:
    """The inputs that the last `count` columns of left-padded rows need; `attend` (n,L) is 0 on padding."""
    position = (attend.cumsum(-1) - 1).clamp_(min=0)
    return {"attention_mask": attend, "position_ids": position[:, -count:]}


def split_samples(samples: DecodeState, slots: int, padded: bool) -> list[Tensor]:
    """The samples that are decoded together, at most `slots`; if not padded, with prompts of one length."""
    rows = samples.index[: samples.N]
    if padded:
        return list(rows.split(slots))
    length = torch.tensor([len(p) for p in samples.prompts], device=rows.device)[rows // samples.G]
    return [chunk for n in length.unique() for chunk in rows[length == n].split(slots)]


def decode_generic(model: Any, samples: DecodeState, slots: int, padded: bool, cached: bool) -> int:
    """Decode all samples, `slots` at a time, and return the number of steps. Finished samples leave the
    batch. `padded`: prompts of different lengths share a batch, padded on the left.
    """
    steps = 0
    for rows in split_samples(samples, slots, padded):
        steps += _decode_together(model, samples, rows, padded, cached, steps)
    return steps


def _decode_together(
    model: Any, samples: DecodeState, rows: Tensor, padded: bool, cached: bool, earlier: int
) -> int:
    """Decode the samples `rows` in one batch after `earlier` steps, and return the number of steps."""
    steps = 0
    run: Callable[..., tuple[Tensor, dict]] = forward if cached else forward_whole
    # each prompt is prefilled once
    prompt, group = (rows // samples.G).unique(return_inverse=True)
    prompts = [samples.prompts[i] for i in prompt.tolist()]
    width = max(map(len, prompts))
    # (m,L)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)
    attend = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    logits, cache = run(model, ids, {}, **(pad_inputs(attend, width) if padded else {}))
    ids, attend, logits = ids[group], attend[group], logits[group]
    select_rows(cache, group)
    while True:
        token, going = samples.append_tokens(rows, logits)
        if samples.stop and (earlier + steps) % samples.check_every == 0:
            going &= ~samples.find_stopped(rows)
        live = torch.nonzero(going)[:, 0]
        if not len(live):
            return steps
        if len(live) < len(rows):
            rows, ids, attend, token = rows[live], ids[live], attend[live], token[live]
            select_rows(cache, live)
        ids = torch.cat((ids, token[:, None]), 1)
        attend = torch.cat((attend, attend.new_ones(len(rows), 1)), 1)
        new = ids[:, -1:] if cached else ids
        logits, cache = run(model, new, cache, **(pad_inputs(attend, 1) if padded else {}))
        steps += 1


def select_rows(cache: dict, rows: Tensor) -> None:
    """Keep these rows of the cache, in this order; a row may occur more than once."""
    for part in cache.values():
        own = getattr(type(part), "batch_select_indices", None)
        # Cache's method leaves recurrent states out; MiniMax has one of its own
        if own in (None, Cache.batch_select_indices):
            part.reorder_cache(rows)
        else:
            part.batch_select_indices(rows)
