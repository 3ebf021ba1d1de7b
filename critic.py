"""What PPO and PRIME keep beside the policy: a critic of states, or an implicit process reward model.

The trainer has one of them, its `aux`. `prepare(batch)` runs before the advantages are computed and
`update(batch)` after that; both return metrics. `learners` are what it trains. `batch` is the trainer's
Batch: N rows, (N,T) tensors, micro-batches and minibatches of rows. Nothing here imports the trainer.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.learner import Learner
from runtime.runfolder import UserError


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantages (N,T) from token rewards, values of the states before the tokens, and the
    mask of the tokens, all (N,T): 1506.02438, eq. 16. With values 0 and lam 1 they are the returns to go.

    The state after a row's last token is worth 0, also where the row was cut at the cap.
    """
    advantages = torch.zeros_like(rewards)
    # (N,) the advantage and the value of the next token
    next_advantage, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_value = torch.where(mask[:, t], values[:, t], 0.0)
        advantages[:, t] = next_advantage
    return advantages


def process_advantages(rewards: Tensor, mask: Tensor, G: int, gamma: float) -> Tensor:
    """PRIME's advantages (N,T) by process rewards (N,T): the discounted sum, from each token on, of the
    rewards minus the mean over the group's other samples of their mean reward per token. 2502.01456.
    """
    # (B,G), 0 for a row without tokens
    mean = ((rewards * mask).sum(1) / mask.sum(1).clamp(min=1)).view(-1, G)
    count = mask.any(1).view(-1, G)  # (B,G)
    count_others = (count.sum(1, keepdim=True) - count.int()).clamp(min=1)
    mean_others = ((mean.sum(1, keepdim=True) - mean) / count_others).view(-1, 1)  # (N,1)
    return gae((rewards - mean_others) * mask, torch.zeros_like(rewards), mask, gamma, 1.0)


class NoAux:
    """Most algorithms keep nothing beside the policy: this does nothing."""

    learners: tuple[Learner, ...] = ()

    def __init__(self, policy: Any, cfg: Any):
        pass

    def prepare(self, batch: Any) -> dict[str, float]:
        return {}

    def update(self, batch: Any) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any] | None:
        return None

    def load_state_dict(self, state: Any) -> None:
        pass


class Aux(NoAux):
    """A module that learns beside the policy, in evaluation mode as the policy does."""

    def __init__(self, module: nn.Module, cfg: Any):
        self.cfg = cfg
        self.learner = Learner(module.eval(), cfg.critic_lr or cfg.lr, cfg.weight_decay, cfg.grad_clip)
        self.learners = (self.learner,)

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state)


# ---------------------------------------------------------------- PPO's critic

# A variance below this share of the mean square is rounding in fp32.
ROUNDING = 1e-8


@torch.no_grad()
def hidden_width(model: Any) -> int:
    """Width of the base model's last hidden states. Errors: UserError if it gives none."""
    input_ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        return model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state.shape[-1]
    except AttributeError as error:
        raise UserError(
            f"{model.config.model_type} has no base model whose hidden states a critic could read: choose an "
            "--algo without a critic, or another model."
        ) from error


class Critic(Aux):
    """Values of states, for PPO: a linear head, 0 at first, on a copy of the policy's backbone; or, with
    `critic=head`, on the policy's own features, into which none of its gradient flows.
    """

    def __init__(self, policy: Any, cfg: Any):
        model = policy.model
        self.autocast = policy.autocast
        self.head = nn.Linear(hidden_width(model), 1, device=model.device, dtype=model.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.shared = cfg.critic == "head"
        self.backbone = model.base_model if self.shared else copy.deepcopy(model.base_model)
        super().__init__(self.head if self.shared else nn.ModuleList([self.head, self.backbone]), cfg)

    def values(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(n,T) of the states before the tokens, 0 outside the mask."""
        with self.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and not self.shared):
            hidden = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]  # (n,T,H)
        return self.head(hidden.to(self.head.weight.dtype))[..., 0] * mask

    def prepare(self, batch: Any) -> dict[str, float]:
        """Fill batch.values with those of the critic before its update."""
        batch.values = batch.map(self.values)
        return {}

    def update(self, batch: Any) -> dict[str, float]:
        """Learn the returns over the same minibatches as the policy. The loss is the larger one of the
        squared errors of the value and of the value clipped around the old one, as in PPO's reference code.
        """
        mask, losses = batch.loss_mask, []
        for minibatch in batch.minibatches():
            tokens, total = mask[minibatch].sum().clamp(min=1), 0.0
            for where, input_ids, _ in batch.micro(minibatch):
                values, old = self.values(input_ids, mask[where]), batch.values[where]
                loss = (
                    value_loss(values, old, batch.returns[where], mask[where], self.cfg.value_clip) / tokens
                )
                loss.backward()
                total += loss.item()
            self.learner.step(total)
            losses.append(total)
        return {"value_loss": sum(losses) / max(1, len(losses))} | self.explained(batch)

    def explained(self, batch: Any) -> dict[str, float]:
        """The mean value, and the share of the returns' variance that the values explain, left out where the
        returns vary by rounding alone (equal rewards).
        """
        returns, values = batch.returns[batch.loss_mask], batch.values[batch.loss_mask]
        variance = returns.var(correction=0).item() if len(returns) else 0.0
        metrics = {"value": values.mean().item()} if variance > 0 else {}
        size = max(x.pow(2).mean().item() for x in (returns, values)) if len(returns) else 0.0
        if variance > ROUNDING * size:
            unexplained = (returns - values).var(correction=0).item()
            metrics["explained_variance"] = 1 - unexplained / variance
        return metrics


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Half the squared errors, summed over the mask; all (n,T)."""
    error = (values - returns) ** 2
    if clip:
        error = torch.maximum(error, (old + (values - old).clamp(-clip, clip) - returns) ** 2)
    return 0.5 * (error * mask).sum()


# ---------------------------------------------------------------- PRIME's process reward model


class ImplicitPRM(Aux):
    """PRIME's process rewards, 2502.01456: r_t = beta * log(PRM / reference). The PRM is a language model
    that starts as the policy does and learns, by cross-entropy on a response's outcome, that the sum of its
    rewards is the log-odds of being right: no step is ever labelled. It learns in `prepare`.
    """

    def __init__(self, policy: Any, cfg: Any):
        super().__init__(copy.deepcopy(policy), cfg)

    def prepare(self, batch: Any) -> dict[str, float]:
        """Reward the batch's tokens and learn from its outcomes in the same pass, which is the paper's
        default, its `single forward`. Fills batch.process_advantages.
        """
        cfg, total, right = self.cfg, 0.0, 0
        count = int(batch.in_batch.sum())
        process = torch.zeros_like(batch.rollout.logprobs)  # (N,T)
        for where, input_ids, mask in batch.micro(batch.rows):
            logprobs, _ = self.learner.module(input_ids, mask)
            reward = cfg.prm_beta * (logprobs - batch.ref_logprobs[where])  # (n,T)
            process[where] = reward.detach().to(process.dtype) * batch.loss_mask[where]
            log_odds = (reward * batch.loss_mask[where]).sum(1)  # (n,)
            label = batch.correct.view(-1)[where[0]]
            loss = F.binary_cross_entropy_with_logits(log_odds, label.to(log_odds.dtype), reduction="sum")
            (loss / count).backward()
            total += loss.item() / count
            right += ((log_odds > 0) == label).sum().item()
        self.learner.step(total)
        batch.process_advantages = process_advantages(process, batch.loss_mask, cfg.group, cfg.gamma)
        return {
            "prm_loss": total,
            "prm_accuracy": right / max(1, count),
            "process_reward": process.sum().item() / max(1, int(batch.loss_mask.sum())),
        }
