"""AdamW for bfloat16 models, with float32 master weights in two flat tensors.

bfloat16 has 8 bits of precision, so rounding discards an update of 1e-3 of a weight. The float32
master weights keep such updates. With flat tensors, a step takes two fused calls instead of one
small call per parameter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_matrix(param: Tensor) -> bool:
    """Return whether weight decay applies to ``param``."""
    return param.ndim > 1 and param.shape[0] > 1


class MasterAdamW:
    """AdamW on float32 copies of the parameters of ``model``.

    One flat tensor holds the matrices, which have weight decay; the other holds the remaining
    parameters. The parameters of the model and their gradients become views of two flat tensors in
    the model's dtype.
    """

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        self.flats: list[Tensor] = []
        self.masters: list[Tensor] = []
        groups = []
        for decay, select_matrices in ((weight_decay, True), (0.0, False)):
            params = [p for p in model.parameters() if is_matrix(p) is select_matrices]
            if not params:
                continue
            flat = torch.cat([p.detach().flatten() for p in params])
            flat.grad = torch.zeros_like(flat)
            offset = 0
            for param in params:
                end = offset + param.numel()
                param.data = flat[offset:end].view_as(param)
                param.grad = flat.grad[offset:end].view_as(param)
                offset = end
            master = flat.float().clone()
            self.flats.append(flat)
            self.masters.append(master)
            groups.append({"params": [master], "weight_decay": decay})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)

    def step(self, lr: float, clip: float = 1.0) -> None:
        """Update the master weights and copy them to the model. Set the gradient to zero.

        Args:
            lr: learning rate.
            clip: maximum norm of the gradient.
        """
        for flat, master in zip(self.flats, self.masters, strict=True):
            assert flat.grad is not None
            master.grad = flat.grad.to(torch.float32, copy=True)
            flat.grad.zero_()
        nn.utils.clip_grad_norm_(self.masters, clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        for flat, master in zip(self.flats, self.masters, strict=True):
            flat.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Return the master weights and the optimizer state, to resume a run."""
        return {"masters": self.masters, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a result of `state_dict`, and the model's weights."""
        for flat, master, saved in zip(self.flats, self.masters, state["masters"], strict=True):
            master.copy_(saved)
            flat.copy_(master)
        self.optimizer.load_state_dict(state["optimizer"])
