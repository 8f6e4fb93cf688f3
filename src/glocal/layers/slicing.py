"""Slices of weights, for networks of several sizes that share one set of the largest weights.

A layer's `slice_for(config)` returns the parameters and buffers that the same layer of a smaller `BlockConfig` has, by
that layer's names. They are views where that is possible, and gradients flow through them. After Cai et al. 2020,
*Once-for-All*, https://arxiv.org/abs/1908.09791, and Chen et al. 2021, *AutoFormer*, https://arxiv.org/abs/2107.00651.
"""

from torch import Tensor, nn

StateDict = dict[str, Tensor]
"""Tensors by the names that they have in a state dict."""


def slice_heads(tensor: Tensor, axis: int, parts: int, num_heads: int, heads: slice, width: int) -> Tensor:
    """Slice an axis that stacks `parts` (such as queries, keys, values) of all heads.

    Of each part, the chosen heads remain, each with its first `width` channels.
    """
    index: list[slice] = [slice(None)] * tensor.ndim
    index[axis : axis + 1] = [slice(None), heads, slice(width)]
    return tensor.unflatten(axis, (parts, num_heads, -1))[tuple(index)].flatten(axis, axis + 2)


def middle(size: int, wanted: int) -> slice:
    """Return the slice of the middle `wanted` of `size` elements; an axis of size 1 is kept whole."""
    return slice(None) if size == 1 else slice((size - wanted) // 2, (size + wanted) // 2)


def last(size: int, wanted: int) -> slice:
    """Return the slice of the last `wanted` of `size` elements; an axis of size 1 is kept whole."""
    return slice(None) if size == 1 else slice(size - wanted, size)


def named_tensors(module: nn.Module) -> StateDict:
    """Return the parameters and buffers of a module by name, with their gradients attached."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def prefixed(prefix: str, tensors: StateDict) -> StateDict:
    """Return the tensors with `prefix` and a dot before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
