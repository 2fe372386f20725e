"""Batch norm whose mean and variance are those of the whole batch, whichever process holds which images.

`torch.nn.SyncBatchNorm` does the same on GPUs only; this one runs on CPUs too.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from handclip.errors import ConfigError


class SynchronizedBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d`, `2d` or `3d` over the images of all processes; same parameters, buffers and state-dict keys."""

    @classmethod
    def of(cls, layer: _BatchNorm) -> "SynchronizedBatchNorm":
        """Return the layer, synchronised; both hold the same tensors."""
        own = cls(layer.num_features, layer.eps, layer.momentum)
        own.weight, own.bias = layer.weight, layer.bias
        own.running_mean, own.running_var = layer.running_mean, layer.running_var
        own.num_batches_tracked = layer.num_batches_tracked
        return own.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise activations of shape (B, channels, ...)."""
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _Normalize.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps
        )
        self._update(mean, variance * (count / (count - 1)))
        return output  # type: ignore[no-any-return]

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions; the layer that this one stands for had checked them in vain."""


def synchronize_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm inside a module by its synchronised form.

    Raises:
        ConfigError: there is one of a kind that has no synchronised form.
    """
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if not isinstance(layer, _BatchNorm) or isinstance(layer, SynchronizedBatchNorm):
                continue
            if type(layer) not in _KINDS or not layer.affine or not layer.track_running_stats:
                raise ConfigError(
                    f"devices: the model has a batch norm ({type(layer).__name__} {name}) that cannot be computed over "
                    "several processes; train it on one device"
                )
            setattr(parent, name, SynchronizedBatchNorm.of(layer))


_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Normalize(Function):
    """Batch norm over all processes (Ioffe & Szegedy 2015), with statistics in float32 or better, in two passes."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        sums = torch.cat([_sum(values), values.new_full((1,), values.numel() / values.shape[1])])
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:-1] / count
        centred = values - _spread(mean, values)
        squares = _sum(centred.square())
        dist.all_reduce(squares)
        variance = squares / count
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(inputs, weight, mean, scale, count)
        output = centred * _spread(scale * weight, values) + _spread(bias, values)
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(inputs.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        inputs, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradient.to(mean.dtype)
        normalized = (inputs.to(mean.dtype) - _spread(mean, inputs)) * _spread(scale, inputs)
        # Weight and bias get the sums over the own images, as every other parameter does.
        own = torch.stack([_sum(gradient), _sum(gradient * normalized)])
        whole = own.clone()
        dist.all_reduce(whole)
        mean_gradient, mean_product = whole / count
        slope = gradient - _spread(mean_gradient, inputs) - normalized * _spread(mean_product, inputs)
        of_inputs = slope * _spread(scale * weight, inputs)
        return of_inputs.to(inputs.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None


def _sum(values: Tensor) -> Tensor:
    """Sum over all dimensions but the channels."""
    return values.sum([dim for dim in range(values.dim()) if dim != 1])


def _spread(per_channel: Tensor, like: Tensor) -> Tensor:
    """Shape numbers per channel so that they broadcast over activations."""
    return per_channel.view(1, -1, *[1] * (like.dim() - 2))
