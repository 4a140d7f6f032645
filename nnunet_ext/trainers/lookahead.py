"""The published optimizer of OSS-Net: weights that are drawn back towards slow ones now and then.

M. Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, NeurIPS 2019. Around `torch.optim.RAdam` it makes
the steps of the published training to the last bit (``specs/ossnet.md`` 2.5).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Lookahead(torch.optim.Optimizer):
    """Another optimizer, and slow weights: every k-th step both meet at a point between them.

    The first meeting is after the first step, whose weights the slow ones start with. Groups, state and learning rates
    are the inner optimizer's, so schedulers and gradient scalers work as usual; `state_dict` has the slow weights too.

    Args:
        optimizer: the inner one.
        k: steps from a meeting to the next.
        alpha: how far the slow weights go towards the fast ones.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, k: int = 5, alpha: float = 0.8) -> None:
        if k < 1 or not 0 < alpha <= 1:
            raise ValueError(f"Lookahead: k must be at least 1 and alpha above 0 and at most 1; got {k} and {alpha}.")
        self.optimizer, self.k, self.alpha = optimizer, k, alpha
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of the inner optimizer, and a meeting of the weights where it is due."""
        loss = self.optimizer.step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._meet(parameter)
        return loss

    def _meet(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        count = state.get("lookahead_step", 0)
        state["lookahead_step"] = count + 1
        if count == 0:
            state["slow"] = parameter.detach().clone()
        if count % self.k == 0:
            parameter.mul_(self.alpha).add_(state["slow"], alpha=1 - self.alpha)
            state["slow"].copy_(parameter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, as of `state_dict`."""
        self.optimizer.load_state_dict(state_dict)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, with the slow weights among that of each parameter."""
        return self.optimizer.state_dict()
