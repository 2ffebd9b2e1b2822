"""AdamW, or Muon for the hidden matrices with AdamW for embeddings and vectors.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest matrix whose singular values are all about 1.
Scaled by 0.2·√(longer side) an update has the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that
`optimizer.lr` and `optimizer.weight_decay` mean the same for both.
"""

# pyright: reportPrivateImportUsage=false
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from copyscope.training.config import OptimizerConfig
from copyscope.training.model.threads import MAX_PARTS, each_in_a_thread, number_of_threads

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""a, b, c of X ← aX + b(XXᵀ)X + c(XXᵀ)²X."""
STEPS = 4
"""Four take singular values from [0.01, 1] to [0.7, 1.2]; a fifth, as PyTorch does, would reach down to 0.002."""


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with Nesterov momentum and `match_rms_adamw`, for many matrices at a time.

    PyTorch's own multiplies one matrix after the other, in bf16. Here all matrices of one shape go through the products
    together: on a CPU in fp32, which an AVX2 processor multiplies many times faster, and on a GPU in bf16. Nothing in
    an update waits for the GPU.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float, weight_decay: float):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                ahead = self._nesterov(matrices, group["momentum"])
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                updates = _orthogonal_in_parts(torch.stack(ahead)).unbind()
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, updates, alpha=-size)

    def _nesterov(self, matrices: list[Tensor], momentum: float) -> tuple[Tensor, ...]:
        """The mean gradients, one step ahead."""
        gradients, means = [], []
        for matrix in matrices:
            assert matrix.grad is not None
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
            gradients.append(matrix.grad)
            means.append(self.state[matrix]["momentum_buffer"])
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, means, momentum)


def _orthogonal_in_parts(matrices: Float[Tensor, "matrix row column"]) -> Float[Tensor, "matrix row column"]:
    """`orthogonal`; on a CPU some matrices in each thread, since products of small matrices are not shared well."""
    if matrices.device.type != "cpu":
        return orthogonal_in_bf16(matrices)
    parts = min(number_of_threads(), MAX_PARTS, len(matrices))
    return torch.cat(each_in_a_thread(orthogonal, matrices.tensor_split(parts)))


def orthogonal(matrices: Float[Tensor, "matrix row column"]) -> Float[Tensor, "matrix row column"]:
    """Each matrix with its singular values moved to about 1 (0.7 to 1.2) by Newton–Schulz steps.

    A step multiplies X from the left by Q = a + bG + cG² with G = XXᵀ, and so turns G into QGQ. Only the first and the
    last product are with X; those between are of the shorter side alone.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    gram = x @ x.transpose(1, 2)
    product = q = _polynomial(gram)
    for _ in range(STEPS - 1):
        gram = q @ gram @ q
        q = _polynomial(gram)
        product = q @ product
    x = product @ x
    return x.transpose(1, 2) if tall else x


def orthogonal_in_bf16(matrices: Float[Tensor, "matrix row column"]) -> Float[Tensor, "matrix row column"]:
    """`orthogonal` with products in bf16, which a GPU multiplies many times faster; the result is in fp32.

    Each step starts from X itself. In `orthogonal` a small singular value is known by its square in G, next to squares
    of about 1, and bf16 has too few digits for that.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)).bfloat16()
    for _ in range(STEPS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


def _polynomial(gram: Float[Tensor, "matrix row row"]) -> Float[Tensor, "matrix row row"]:
    a, b, c = NEWTON_SCHULZ
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result


def build_optimizers(config: OptimizerConfig, model: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """The optimisers that together train every parameter of the model."""
    parameters = dict(model.named_parameters())
    vectors = [p for p in parameters.values() if p.ndim < 2]
    hidden = [p for name, p in parameters.items() if p.ndim == 2 and ".layers." in name and config.name == "muon"]
    others = [p for p in parameters.values() if p.ndim >= 2 and not any(p is matrix for matrix in hidden)]
    groups = [{"params": others, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    if not hidden:
        return (adamw,)
    return Muon(hidden, config.lr, config.momentum, config.weight_decay), adamw


def retune(optimizers: Iterable[torch.optim.Optimizer], config: OptimizerConfig, model: nn.Module) -> None:
    """Gives optimisers that `build_optimizers` made the settings of `config`; what they remember stays."""
    for optimizer, like in zip(optimizers, build_optimizers(config, model), strict=True):
        for group, wanted in zip(optimizer.param_groups, like.param_groups, strict=True):
            group.update({name: value for name, value in wanted.items() if name != "params"})
