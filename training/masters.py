"""AdamW for a model whose weights are bfloat16: the update happens on float32 masters, in two flat tensors.

bfloat16 keeps 8 bits of mantissa, so a step of 1e-3 of a weight is lost in it; the masters keep it.
Flat tensors make the optimiser two fused calls instead of one small one per parameter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MasterAdamW:
    """Owns float32 copies of all parameters of ``model``, in two groups: matrices (decayed) and the rest.

    The parameters become views of two flat tensors in the model's own dtype, and so do their
    gradients.
    """

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        self.flats: list[Tensor] = []
        self.masters: list[Tensor] = []
        groups = []
        for decay, wanted in ((weight_decay, True), (0.0, False)):
            params = [p for p in model.parameters() if (p.ndim > 1 and p.shape[0] > 1) is wanted]
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
        """Clip the whole gradient to norm ``clip``, update the masters, round them into the model, clear gradients."""
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
        """Masters and moments: all that a resumed run needs."""
        return {"masters": self.masters, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, and the model's weights with it."""
        for flat, master, saved in zip(self.flats, self.masters, state["masters"], strict=True):
            master.copy_(saved)
            flat.copy_(master)
        self.optimizer.load_state_dict(state["optimizer"])
