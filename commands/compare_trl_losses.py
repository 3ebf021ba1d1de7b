"""Loss and gradient of the algorithms that TRL has as well, compared with TRL's on the same samples.

    pip install trl; python tinyr1.py compare_trl_losses

TRL's own loss function runs on our batch: log-probabilities of the policy from a plain log-softmax, old and
reference ones and the advantages from us. TRL's RLOO clips the ratio of whole responses, ours that of tokens,
so the two are compared where the ratio is 1 and by their gradient. Where TRL is absent nothing is compared.
"""

import collections
import copy
import sys
from types import SimpleNamespace

import torch

from tests.samples import CAP, START, make, make_models, step

try:
    import trl
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer
except ImportError:
    print("TRL is not installed: nothing compared")
    sys.exit(0)

ROWS = {  # our row -> TRL's settings
    "grpo": dict(loss_type="grpo", beta=0.04),
    "drgrpo": dict(loss_type="dr_grpo"),
    "dapo": dict(loss_type="dapo", epsilon_high=0.28),
    "gspo": dict(loss_type="grpo", importance_sampling_level="sequence", epsilon_low=3e-4, epsilon_high=4e-4),
    "cispo": dict(loss_type="cispo", epsilon_high=1.15),
    "rloo": dict(),
}
OWN = dict(
    filter_groups=False, max_resamples=0, rewards="task"
)  # TRL has no dynamic sampling inside its loss


def log_probs(model, ids, mask, logits_to_keep, **_):
    """As TRL's method: (N,C) log-probabilities of the completions, entropies, no auxiliary loss."""
    logp = model(input_ids=ids).logits[:, -logits_to_keep - 1 : -1].log_softmax(-1)
    return logp.gather(-1, ids[:, -logits_to_keep:, None])[..., 0], -(logp.exp() * logp).sum(-1), None


def trl_loss(name, model, batch):
    """TRL's loss on our batch; its gradient is left in the model."""
    ids, mask = batch.rollout.input_ids, batch.mask[:, START - 1 :].double()
    completion = slice(START - 1, None)
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    settings = (
        dict(
            aux_loss_enabled=False,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            beta=0.0,
            importance_sampling_level="token",
            epsilon_low=0.2,
            epsilon_high=0.2,
            use_vllm=False,
            max_completion_length=CAP,
            current_gradient_accumulation_steps=1,
            accelerator=accelerator,
            model=model,
            args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
            _get_per_token_logps_and_entropies=log_probs,
            _entropy_bonus_enabled=False,
            _metrics={mode: collections.defaultdict(list) for mode in ("train", "eval")},
        )
        | ROWS[name]
    )
    old = batch.old_logprobs[:, completion]
    inputs = {
        "prompt_ids": ids[:, :START], "prompt_mask": torch.ones_like(ids[:, :START]),
        "completion_ids": ids[:, START:], "completion_mask": mask, "num_items_in_batch": mask.sum(),
        "advantages": batch.advantages[:, START - 1], "old_per_token_logps": old,
        "old_logps": (old * mask).sum(1),
        "ref_per_token_logps": batch.ref_logprobs[:, completion],
    }  # fmt: skip
    trainer = RLOOTrainer if name == "rloo" else GRPOTrainer
    loss = trainer._compute_loss(SimpleNamespace(**settings), model, inputs)
    loss.backward()
    return loss.item()


def main(argv=None) -> int:
    models, worst = make_models(), 0.0
    print(f"TRL {trl.__version__}, torch {torch.__version__}, float64\n{'row':8}{'loss':>12}{'gradient':>12}")
    for name in ROWS:
        policy, batch, _ = make(name, models, **OWN)
        other = copy.deepcopy(policy)
        if name == "rloo":  # at ratio 1
            batch.old_logprobs = batch.map(lambda *x: policy(*x)[0])  # noqa: B023
        theirs = trl_loss(name, other, batch)
        expected = torch.cat([p.grad.flatten() for p in other.parameters()])
        loss, gradient = step(policy, batch)
        off = 0.0 if name == "rloo" else abs(loss - theirs)
        far = (gradient - expected).abs().max().item()
        worst = max(worst, off, far)
        print(f"{name:8}{'-' if name == 'rloo' else f'{off:.1e}':>12}{far:>12.1e}")
    print("equal to 1e-6" if worst < 1e-6 else "DIFFERENT")
    return int(worst >= 1e-6)
