"""The policy is the model: what the model's own forward pass says, to which sampler and trainer are held."""

import math
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

# Differences of log-probabilities that are rounding, as a share of the logits' deviation. Over 152 tiny
# architectures in fp32 rounding made less than 1e-5 nats, wrong masks, positions and heads 2e-3 to 4.
ROUNDING = {torch.float32: 3e-3, torch.float64: 3e-3}


def rounding(model) -> float:
    return ROUNDING.get(model.dtype, 0.2)


@contextmanager
def evaluating(model):
    """The model in evaluation mode, without dropout or router jitter."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def random_ids(model, *shape: int) -> torch.Tensor:
    """Token ids on the model's device, the same ones at every call."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return torch.randint(vocabulary, shape, generator=generator).to(model.device)


def plain_head(model) -> bool:
    """Whether the output projection reads the base model's last hidden states and its output is the logits.

    Not so where logits are capped or scaled after it (Gemma 2, Cohere, Granite) or where it has layers of
    its own before it (ModernBERT). Found once a model, with outputs too large for a cap to leave them alone.
    """
    if not hasattr(model, "_plain_head"):
        model._plain_head = _find_plain_head(model)
    return model._plain_head


@torch.no_grad()
def _find_plain_head(model) -> bool:
    head, seen = model.get_output_embeddings(), []
    if getattr(head, "weight", None) is None or model.base_model is model:
        return False
    ids = random_ids(model, 1, 3)
    outputs = torch.linspace(-100, 100, 3 * head.weight.shape[0], device=model.device).view(1, 3, -1)

    def replace(module, inputs, output):
        seen.append(inputs[0])
        return outputs.to(output.dtype)

    hook = head.register_forward_hook(replace)
    try:
        with evaluating(model), torch.autocast(model.device.type, enabled=False):
            logits = model(input_ids=ids, use_cache=False).logits
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    except (AttributeError, TypeError):  # a base model of another kind
        return False
    finally:
        hook.remove()
    if len(seen) != 1 or seen[0].shape != hidden.shape or logits.shape != outputs.shape:
        return False
    same_input = (seen[0] - hidden).abs().max() <= rounding(model) * hidden.std()
    return bool(same_input) and torch.equal(logits, outputs.to(logits.dtype))


def states_and_head(model, ids: torch.Tensor):
    """States (n,L,...) of right-padded ids (n,L) and the module that makes logits (...,V) of them: hidden
    states and the output projection, or where that is not all of it the logits themselves.

    Right padding needs no attention mask, because attention is causal.
    """
    if not plain_head(model):
        return model(input_ids=ids, use_cache=False).logits, nn.Identity()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden, model.get_output_embeddings()


@torch.no_grad()
def own_logp(model, roll):
    """Log-probabilities (N,T) of a Rollout's completions by the model's own forward pass, over each row alone
    and without padding, and the deviation of its logits.
    """
    logp, spread = torch.zeros_like(roll.logp), 0.0
    for i, (start, count) in enumerate(zip(roll.prompt_len.tolist(), roll.length.tolist())):
        ids = roll.ids[i, : start + count]
        logits = model(input_ids=ids[None], use_cache=False).logits[0, start - 1 : -1].float()  # (count,V)
        chosen = F.log_softmax(logits, -1).gather(-1, ids[start:, None])[:, 0]
        logp[i, start - 1 : start - 1 + count] = chosen
        spread = max(spread, logits.std(-1).max().item())
    return logp, spread


def position_limit(model) -> float:
    """Tokens that a row may have: the model's positions, or those up to which the longest row of a batch does
    not change the encoding of every position (Phi-3's longrope), because then padding changes the policy.
    """
    if not hasattr(model, "_position_limit"):
        config = model.config.get_text_config()
        known = getattr(config, "max_position_embeddings", None) or 0
        limit = known if known > 0 else math.inf
        changes = {n for n in _original_lengths(config.to_dict()) if n < limit}
        model._position_limit = min((n for n in changes if _padding_matters(model, n)), default=limit)
    return model._position_limit


def _original_lengths(settings: dict):
    """Every length in a configuration at which position encoding may change."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _original_lengths(value)
        elif name == "original_max_position_embeddings" and value:
            yield int(value)


@torch.no_grad()
def _padding_matters(model, length: int) -> bool:
    """Whether a row changes when another one in the batch has positions beyond `length`."""
    ids, near = random_ids(model, 2, 3), torch.arange(3, device=model.device)
    with evaluating(model):
        alone, beside = (
            model(input_ids=ids, position_ids=torch.stack((near, near + far)), use_cache=False).logits[0]
            for far in (0, length)
        )
    return bool((alone - beside).abs().max() > rounding(model) * alone.std())
