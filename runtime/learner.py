"""A module with its optimizer: what the policy, the critic and the process reward model train with."""

import math
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def weights_are_finite(module: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in module.parameters())


class Learner(Generic[Module]):
    """AdamW on a module, with clipped gradients and a check that they are finite."""

    def __init__(self, module: Module, lr: float, weight_decay: float = 0.0, grad_clip: float = 1.0):
        self.module, self.grad_clip, self.skipped = module, grad_clip, 0
        # fused: no temporaries as large as the model
        fused = next(module.parameters()).is_cuda
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay, fused=fused
        )

    def step(self, loss: float) -> float | None:
        """One optimizer step with the gradients that `backward` has left, which are then dropped.

        Returns their norm before clipping. If it or the loss is NaN or infinite, the weights stay as they
        are, `skipped` counts the step, and None is returned.
        """
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.grad_clip).item()
        good = math.isfinite(norm) and math.isfinite(loss)
        if good:
            self.optimizer.step()
        else:
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        return norm if good else None

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def take_skipped(self) -> int:
        """How many steps were skipped since the last call."""
        skipped, self.skipped = self.skipped, 0
        return skipped

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a state in, tensor by tensor: one that is mapped from a file is never in memory as a whole."""
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # torch keeps tensors that are on the right device; those would be pages of the file
        for moments in self.optimizer.state.values():
            for name, value in moments.items():
                moments[name] = value.clone()
