"""Which parameters take part in a network's output: DDP fails when one of those that it watches gets no gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def unused_parameters(network: nn.Module, *inputs: Any) -> list[str]:
    """Names of the parameters that need a gradient and get none from the network's output.

    Follows the graph of one forward pass; nothing is differentiated, so network and data may be on the meta device.

    Args:
        network: in the state (training mode, deep supervision) that is asked about.
        *inputs: of its forward pass: (B, C, *spatial), and what a network with `memory_probe` asks for beside.
    """
    nodes = [tensor.grad_fn for tensor in _tensors(network(*inputs)) if tensor.grad_fn is not None]
    seen: set[Any] = set(nodes)
    reached: set[int] = set()
    while nodes:
        node = nodes.pop()
        variable = getattr(node, "variable", None)  # only the nodes of leaves have one
        if variable is not None:
            reached.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return [name for name, p in network.named_parameters() if p.requires_grad and id(p) not in reached]


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)
