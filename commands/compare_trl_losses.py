"""Compare loss and gradient of the algorithms that TRL has too, on the same samples.

    python tinyr1.py compare_trl_losses      needs TRL: python -m pip install trl

TRL's loss function runs on our batch: log-probabilities of the policy from a plain log-softmax; the old and
the reference ones and the advantages are ours. TRL's RLOO clips the ratio of whole responses, ours that of
tokens, so RLOO is compared by its gradient where the ratio is 1. The exit code is 1 if anything differs by
1e-6.
"""

import collections
import copy
from types import SimpleNamespace
from typing import Any

import torch

from commands import make_parser
from tests.samples import CAP, START, make, make_models, step

# {our row: TRL's settings}
ROWS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "beta": 0.04},
    "drgrpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.15},
    "rloo": {},
}
# TRL's loss has no dynamic sampling.
OWN = {"filter_groups": False, "max_resamples": 0, "rewards": "task"}
# Settings of TRL's trainer that its loss reads.
SETTINGS: dict[str, Any] = {
    "aux_loss_enabled": False,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "beta": 0.0,
    "importance_sampling_level": "token",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "use_vllm": False,
    "max_completion_length": CAP,
    "current_gradient_accumulation_steps": 1,
    "accelerator": SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
    "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
    "_entropy_bonus_enabled": False,
}


def log_probs(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, logits_to_keep: int, **_: Any
) -> tuple[torch.Tensor, torch.Tensor, None]:
    """As TRL's method: (N,C) log-probabilities of the completions, entropies, no auxiliary loss."""
    logp = model(input_ids=ids).logits[:, -logits_to_keep - 1 : -1].log_softmax(-1)
    return logp.gather(-1, ids[:, -logits_to_keep:, None])[..., 0], -(logp.exp() * logp).sum(-1), None


def trl_loss(trainer: Any, name: str, model: Any, batch: Any) -> float:
    """The loss of TRL's trainer class on our batch; its gradient is left in the model."""
    ids, mask = batch.rollout.input_ids, batch.mask[:, START - 1 :].double()
    completion = slice(START - 1, None)
    own = {
        "model": model,
        "_get_per_token_logps_and_entropies": log_probs,
        "_metrics": {mode: collections.defaultdict(list) for mode in ("train", "eval")},
    }
    old = batch.old_logprobs[:, completion]
    inputs = {
        "prompt_ids": ids[:, :START],
        "prompt_mask": torch.ones_like(ids[:, :START]),
        "completion_ids": ids[:, START:],
        "completion_mask": mask,
        "num_items_in_batch": mask.sum(),
        "advantages": batch.advantages[:, START - 1],
        "old_per_token_logps": old,
        "old_logps": (old * mask).sum(1),
        "ref_per_token_logps": batch.ref_logprobs[:, completion],
    }
    loss = trainer._compute_loss(SimpleNamespace(**SETTINGS | own | ROWS[name]), model, inputs)
    loss.backward()
    return loss.item()


def main(argv: list[str]) -> int:
    make_parser("compare_trl_losses", "", __doc__).parse_args(argv)
    try:
        import trl
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.rloo_trainer import RLOOTrainer
    except ImportError:
        print("TRL is not installed, so nothing was compared: python -m pip install trl")
        return 0
    models, worst = make_models(), 0.0
    print(f"TRL {trl.__version__}, torch {torch.__version__}, float64\n{'row':8}{'loss':>12}{'gradient':>12}")
    for name in ROWS:
        policy, batch, _ = make(name, models, **OWN)
        other = copy.deepcopy(policy)
        # RLOO is compared at ratio 1
        if name == "rloo":
            batch.old_logprobs = batch.map(lambda *x: policy(*x)[0])  # noqa: B023
        theirs = trl_loss(RLOOTrainer if name == "rloo" else GRPOTrainer, name, other, batch)
        expected = torch.cat([p.grad.flatten() for p in other.parameters()])
        loss, gradient = step(policy, batch)
        off = 0.0 if name == "rloo" else abs(loss - theirs)
        far = (gradient - expected).abs().max().item()
        worst = max(worst, off, far)
        print(f"{name:8}{'-' if name == 'rloo' else f'{off:.1e}':>12}{far:>12.1e}")
    print("equal to 1e-6" if worst < 1e-6 else "DIFFERENT")
    return int(worst >= 1e-6)
