"""What a training run needs before its first step: models, problems, and what can be checked early."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.rollout import longest_prompt
from runtime.learner import weights_are_finite
from runtime.models import check_policy, check_tokenizer, load_model, pick_attention, recompute_layers
from runtime.problems import Problem, Problems, check_splits, held_out
from runtime.runfolder import UserError, check_export
from tasks import Task


def load(cfg: Any) -> tuple[Any, Any | None, Any]:
    """The model, the reference model if something needs it, and the tokenizer. Errors: UserError."""
    device = torch.device(cfg.device)
    needs_reference = cfg.kl > 0 or cfg.aux == "prm"
    second_model = cfg.aux == "prm" or (cfg.aux == "critic" and cfg.critic == "copy")
    model, tokenizer = load_model(cfg.model, device, 16 + 6 * needs_reference + 16 * second_model)
    reference = load_model(cfg.model, device, 4)[0].requires_grad_(False) if needs_reference else None
    return model, reference, tokenizer


def prepare(
    model: Any, tokenizer: Any, task: Task, cfg: Any, logprobs: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Problems, list[Problem]]:
    """Check all that can be checked before the first step: the training problems, and the held-out ones.

    logprobs: the trainer's log-probabilities of this model, in fp32 at temperature 1. Errors: UserError,
    TaskError.
    """
    room = longest_prompt(model, cfg.max_new_tokens)
    held = held_out(task, cfg, tokenizer, room)
    check_tokenizer(model, tokenizer, cfg.template, held)
    check_export(model, tokenizer)
    if not weights_are_finite(model):
        raise UserError(f"The model {cfg.model} has weights that are NaN or infinite. Choose another one.")
    check_splits(Problems(task, "train", cfg, tokenizer, room), held)
    pick_attention(model, cfg.precision)
    if cfg.gradient_checkpointing:
        recompute_layers(model)
    check_policy(model, cfg.model, logprobs)
    return Problems(task, "train", cfg, tokenizer, room), held
