"""The generic path of the rollout: whatever Hugging Face can run, by its own forward pass and cache."""

import torch
from transformers import Cache

from policy import states_and_head

CACHES = ("past_key_values", "cache_params")  # what a model calls its cache


def forward(model, ids, cache: dict, **inputs):
    """Logits (n,V) of the token after ids (n,L), which follow what the cache holds, and the cache with them:
    {the model's name for it: cache}, at first {}.
    """
    result = model(input_ids=ids, use_cache=True, **cache, **inputs)
    return result.logits[:, -1], {name: result[name] for name in CACHES if name in result}


def forward_whole(model, ids, cache: dict):
    """The same without a cache: `ids` are the whole rows."""
    states, head = states_and_head(model, ids)
    return head(states[:, -1]), {}


def left_padded(attend, count: int) -> dict:
    """What the last `count` columns of left-padded rows need, of which `attend` (n,L) says what is there."""
    position = (attend.cumsum(-1) - 1).clamp_(min=0)
    return {"attention_mask": attend, "position_ids": position[:, -count:]}


def _chunks(samples, slots: int, padded: bool) -> list[torch.Tensor]:
    """The samples that are decoded together: `slots` or fewer, if not padded with prompts of one length."""
    rows = samples.index[: samples.N]
    if padded:
        return list(rows.split(slots))
    length = torch.tensor([len(p) for p in samples.prompts], device=rows.device)[rows // samples.G]
    return [chunk for n in length.unique() for chunk in rows[length == n].split(slots)]


def decode_generic(model, samples, slots: int, padded: bool, cached: bool) -> int:
    """Decode all samples (rollout.Samples), `slots` at a time, of which the ended ones leave, and return the
    number of steps. `padded`: prompts of different lengths stand together, padded on the left.
    """
    steps, run = 0, forward if cached else forward_whole
    for rows in _chunks(samples, slots, padded):
        first, group = (rows // samples.G).unique(return_inverse=True)  # each prompt is prefilled once
        prompts = [samples.prompts[i] for i in first.tolist()]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)  # (m,L)
        attend = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        logits, cache = run(model, ids, {}, **(left_padded(attend, width) if padded else {}))
        ids, attend, logits = ids[group], attend[group], logits[group]
        select(cache, group)
        while True:
            token, live = samples.settle(rows, logits)
            if samples.stop and steps % samples.every == 0:
                live &= ~samples.stopped(rows)
            live = torch.nonzero(live)[:, 0]
            if not len(live):
                break
            if len(live) < len(rows):
                rows, ids, attend, token = rows[live], ids[live], attend[live], token[live]
                select(cache, live)
            ids = torch.cat((ids, token[:, None]), 1)
            attend = torch.cat((attend, attend.new_ones(len(rows), 1)), 1)
            new = ids[:, -1:] if cached else ids
            logits, cache = run(model, new, cache, **(left_padded(attend, 1) if padded else {}))
            steps += 1
    return steps


def select(cache: dict, rows: torch.Tensor) -> None:
    """Keep these rows of the cache, in this order; a row may occur more than once."""
    for part in cache.values():
        own = getattr(type(part), "batch_select_indices", None)
        if own in (None, Cache.batch_select_indices):  # which leaves recurrent states out
            part.reorder_cache(rows)
        else:  # MiniMax's
            part.batch_select_indices(rows)
