"""What PPO and PRIME keep beside the policy: a critic of states, or an implicit process reward model.

Either fills the trainer's one `aux` slot: `judge(batch)` before the advantage is made, `learn(batch)` after
it; both return metrics. `batch` is the trainer's Batch: N rows, (N,T) tensors, micro-batches of rows, and
the rows of each optimizer step. Nothing here imports the trainer.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from runfolder import UserError


def gae(reward, value, mask, gamma: float, lam: float):
    """Generalised advantage (N,T) from token rewards, values of the states before the tokens, and the tokens'
    mask, all (N,T): 1506.02438, eq. 16. With value 0 and lam 1 it is the return to go.

    The state behind a row's last token is worth 0, also where the row was cut at the cap.
    """
    adv = torch.zeros_like(reward)
    later, ahead = torch.zeros_like(reward[:, 0]), torch.zeros_like(reward[:, 0])  # (N,)
    for t in reversed(range(reward.shape[1])):
        error = reward[:, t] + gamma * ahead - value[:, t]
        later = torch.where(mask[:, t], error + gamma * lam * later, 0.0)
        ahead = torch.where(mask[:, t], value[:, t], 0.0)
        adv[:, t] = later
    return adv


def process_return(process, mask, G: int, gamma: float):
    """PRIME's advantage (N,T) by process rewards (N,T): the discounted sum, from each token on, of the
    rewards less the mean over the group's other samples of their mean reward a token. 2502.01456.
    """
    mean = ((process * mask).sum(1) / mask.sum(1).clamp(min=1)).view(
        -1, G
    )  # (B,G), 0 of a row without tokens
    count = mask.any(1).view(-1, G)  # (B,G)
    count = (count.sum(1, keepdim=True) - count.int()).clamp(min=1)  # of the others
    others = ((mean.sum(1, keepdim=True) - mean) / count).view(-1, 1)  # (N,1)
    return gae((process - others) * mask, torch.zeros_like(process), mask, gamma, 1.0)


ROUNDING = 1e-8  # a variance below this share of the mean square says nothing in fp32


class Aux:
    """A model with an optimizer of its own. `own` is what it trains and what a checkpoint holds."""

    def __init__(self, own: nn.Module, cfg):
        self.own, self.skipped = own.eval(), 0  # as the policy: see tinyr1.update
        parameters, lr = own.parameters(), cfg.aux_lr or cfg.lr
        fused = next(own.parameters()).is_cuda
        self.optimizer = torch.optim.AdamW(
            parameters, lr=lr, betas=(0.9, 0.95), weight_decay=cfg.weight_decay, fused=fused
        )

    def step(self, cfg, loss: float) -> None:
        """An optimizer step, unless the gradient is not finite: then `skipped` counts it."""
        norm = torch.nn.utils.clip_grad_norm_(self.own.parameters(), cfg.grad_clip).item()
        if math.isfinite(norm) and math.isfinite(loss):
            self.optimizer.step()
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)

    def skips(self) -> int:
        """Steps without an update since it was last asked."""
        found, self.skipped = self.skipped, 0
        return found

    def state_dict(self) -> dict:
        return {"own": self.own.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.own.load_state_dict(state["own"]), self.optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def hidden_width(model) -> int:
    """Width of the base model's last hidden states. Errors: UserError if it gives none."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state.shape[-1]
    except AttributeError as error:
        raise UserError(
            f"{model.config.model_type} has no base model whose hidden states a critic could read: choose an "
            "--algo without a critic, or another model."
        ) from error


class Critic(Aux):
    """Values of states, for PPO: a linear head, 0 at first, on a copy of the policy's backbone; or, with
    `critic=head`, on the policy's own features, into which no gradient of it flows.
    """

    def __init__(self, model, cfg):
        self.head = nn.Linear(hidden_width(model), 1, device=model.device, dtype=model.dtype)
        nn.init.zeros_(self.head.weight), nn.init.zeros_(self.head.bias)
        self.shared = cfg.critic == "head"
        self.backbone = model.base_model if self.shared else copy.deepcopy(model.base_model)
        super().__init__(self.head if self.shared else nn.ModuleList([self.head, self.backbone]), cfg)

    def values(self, batch, ids, mask):
        """(n,T) of the states before the tokens, 0 outside the mask."""
        with batch.autocast(), torch.set_grad_enabled(torch.is_grad_enabled() and not self.shared):
            hidden = self.backbone(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # (n,T,H)
        return self.head(hidden.to(self.head.weight.dtype))[..., 0] * mask

    def judge(self, batch) -> dict:
        batch.value = batch.stored(lambda ids, mask: self.values(batch, ids, mask))
        return {}

    def learn(self, batch) -> dict:
        """Squared error to the returns, the larger one of the value and of the value clipped around the old
        one (as in PPO's reference code), over the same optimizer steps as the policy's.
        """
        cfg, active, losses = batch.cfg, batch.active, []
        for part in batch.parts():
            tokens, total = active[part].sum().clamp(min=1), 0.0
            for _, at, ids, _ in batch.micro(part):
                value, old, ret = self.values(batch, ids, active[at]), batch.value[at], batch.ret[at]
                loss = value_loss(value, old, ret, active[at], cfg.value_clip) / tokens
                loss.backward()
                total += loss.item()
            self.step(cfg, total)
            losses.append(total)
        ret, value = batch.ret[active], batch.value[active]
        metrics = {"value_loss": sum(losses) / max(1, len(losses))}
        spread = ret.var(correction=0).item() if len(ret) else 0.0
        if spread > 0:
            metrics["value"] = value.mean().item()
        # equal rewards: what varies then is the rounding of sums of values
        size = max(x.pow(2).mean().item() for x in (ret, batch.value[active])) if len(ret) else 0.0
        if spread > ROUNDING * size:
            metrics["explained_variance"] = 1 - (ret - value).var(correction=0).item() / spread
        return metrics


def value_loss(value, old, ret, mask, clip: float):
    """Half the squared errors, summed over the mask; all (n,T)."""
    error = (value - ret) ** 2
    if clip:
        error = torch.maximum(error, (old + (value - old).clamp(-clip, clip) - ret) ** 2)
    return 0.5 * (error * mask).sum()


class ImplicitPRM(Aux):
    """PRIME's process rewards, 2502.01456: r_t = beta * log(PRM / reference). The PRM is a language
    model that starts as the policy does and learns, by cross-entropy on a response's outcome, that the sum of
    its rewards is the log-odds of being right: no step is ever labelled.
    """

    def __init__(self, model, cfg):
        super().__init__(copy.deepcopy(model), cfg)

    def judge(self, batch) -> dict:
        """Judge the batch's tokens, then learn from its outcomes, in one pass: the paper's default, its
        `single forward`.
        """
        cfg, loss, right = batch.cfg, 0.0, 0
        process = torch.zeros_like(batch.roll.logp)  # (N,T)
        for rows, at, ids, mask in batch.micro(batch.rows):
            reward = cfg.prm_beta * (batch.logp(self.own, ids, mask)[0] - batch.ref_logp[at])  # (n,T)
            process[at] = reward.detach().to(process.dtype) * batch.active[at]
            odds = (reward * batch.active[at]).sum(1)  # (n,)
            label = batch.outcome.view(-1)[rows]
            part = F.binary_cross_entropy_with_logits(odds, label.to(odds.dtype), reduction="sum")
            (part / len(batch.rows)).backward()
            loss, right = loss + part.item() / len(batch.rows), right + ((odds > 0) == label).sum().item()
        self.step(cfg, loss)
        batch.process = process_return(process, batch.active, cfg.group, cfg.gamma)
        mean = process.sum().item() / max(1, int(batch.active.sum()))
        return {
            "prm_loss": loss, "prm_accuracy": right / max(1, len(batch.rows)), "process_reward": mean,
        }  # fmt: skip

    def learn(self, batch) -> dict:
        return {}  # it has
