"""Domain alignment: the distance between the outputs of the two modalities, as two sets of rows.

The paper uses the squared maximum mean discrepancy (MMD) with a sum of Gaussian kernels. Kernel and
estimator are arguments. CORAL compares means and covariances instead. Both are computed in float64,
also under autocast: rows have squared norms of thousands, and the narrowest kernel resolves
differences of a thousandth.

Paper: XKD, arXiv:2211.13929; MMD, Gretton et al. 2012; Deep CORAL, arXiv:1607.01719.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx

from xkd_core.config import ObjectiveConfig
from xkd_core.shapes import Float, Tensor

Bandwidth = Literal["fixed", "median"]

_MIN_SQUARED_DISTANCE = 1e-30
_MIN_MEDIAN_DISTANCE = 1e-6
"""Lower bound of the median, so that equal rows give finite gradients."""


class _Distances(NamedTuple):
    """Squared distances within and between two sets of rows."""

    xx: Float[Tensor, "n n"]
    yy: Float[Tensor, "m m"]
    xy: Float[Tensor, "n m"]


def alignment_distance(
    x: Float[Tensor, "n K"], y: Float[Tensor, "m K"], objective: ObjectiveConfig
) -> Float[Tensor, ""]:
    """Computes the distance that the objective's settings select, over the given rows."""
    if objective.alignment == "coral":
        return coral(x, y)
    return mmd(
        x,
        y,
        objective.mmd_gammas,
        bandwidth=objective.mmd_bandwidth,
        unit_sphere=objective.mmd_unit_sphere,
        unbiased=objective.mmd_unbiased,
    )


def mmd(
    x: Float[Tensor, "n K"],
    y: Float[Tensor, "m K"],
    gammas: Sequence[float],
    *,
    bandwidth: Bandwidth = "fixed",
    unit_sphere: bool = False,
    unbiased: bool = False,
) -> Float[Tensor, ""]:
    """Squared maximum mean discrepancy, with a sum of Gaussian kernels.

        MMD(X, Y) = mean k(X, X) + mean k(Y, Y) - 2 mean k(X, Y)
        k(x, y) = sum over gammas of exp(-gamma |x - y|^2)

    As published, the means within a set include the pairs of a row with itself, where k equals the
    number of gammas. The distance of a set to itself is exactly 0.

    With two rows a set, means run over these entries (`.` is left out by `unbiased`):

        k(X, X)  x1  x2     k(X, Y)  y1  y2
             x1   .   k          x1   k   k
             x2   k   .          x2   k   k

    Args:
        x: Rows of one set.
        y: Rows of the other.
        gammas: Inverse squared widths of the kernels.
        bandwidth: `median` divides squared distances by their median over all pairs of different
            rows of both sets, so that `gammas` are relative to it. The median has no gradient.
        unit_sphere: Divides rows by their norms first, so that squared distances are 2 (1 - cos).
        unbiased: Excludes the pairs of a row with itself. The expected distance of two sets from
            one distribution is then 0. The biased form is above 0 there, the more so the more the
            rows differ, and so rewards similar rows in small batches.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.double(), y.double()
        if unit_sphere:
            x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
        distances = _squared_distances(x, y)
        if bandwidth == "median":
            median = _median(distances).clamp_min(_MIN_MEDIAN_DISTANCE)
            distances = _Distances(*(distance / median for distance in distances))
        within_x, within_y, between = _kernels(distances, gammas)
        mean = _mean_of_others if unbiased else torch.mean
        return (mean(within_x) + mean(within_y) - 2.0 * between.mean()).float()


def coral(x: Float[Tensor, "n K"], y: Float[Tensor, "m K"]) -> Float[Tensor, ""]:
    """Mean squared differences of the two means and of the two covariances.

    The K x K covariances are never formed. With centered rows Xc and Yc, the inner product of two
    covariances is |Xc Yc^T|^2 / ((n - 1) (m - 1)).
    """
    width = x.shape[-1]
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.double(), y.double()
        mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
        x = (x - mean_x) / max(1, len(x) - 1) ** 0.5
        y = (y - mean_y) / max(1, len(y) - 1) ** 0.5
        within_x, within_y, between = (
            (a @ b.T).square().sum() for a, b in ((x, x), (y, y), (x, y))
        )
        covariances = (within_x + within_y - 2.0 * between) / width**2
        return ((mean_x - mean_y).square().mean() + covariances).float()


def gather_rows(rows: Float[Tensor, "n K"]) -> Float[Tensor, "n_all K"]:
    """Concatenates the rows of all workers, which must have equally many.

    For a loss that every worker computes from all rows. Each worker then has the same gradient of
    the loss by all rows, so the sum of these gradients over W workers is W times its own:

        loss = f(rows of worker 0, ..., rows of worker W - 1)    the same on every worker
        backward of worker r: W * (gradient by the rows of r)    no communication

    DistributedDataParallel averages over workers, which divides by W again: the gradients of the
    weights equal those of one process with all rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor) -> Tensor:  # noqa: ARG004 - autograd's signature
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # noqa: ARG004 - as above
        num_workers = dist.get_world_size()
        return gradient.chunk(num_workers)[dist.get_rank()] * num_workers


def _squared_distances(x: Float[Tensor, "n K"], y: Float[Tensor, "m K"]) -> _Distances:
    """|x|^2 + |y|^2 - 2 x y, with norms from the diagonals of the same products.

    A row is then at distance exactly 0 from itself, and equal sets give three equal blocks.
    """
    xx, yy, xy = x @ x.T, y @ y.T, x @ y.T
    norms_x, norms_y = xx.diagonal(), yy.diagonal()
    return _Distances(
        norms_x[:, None] + norms_x[None, :] - 2.0 * xx,
        norms_y[:, None] + norms_y[None, :] - 2.0 * yy,
        norms_x[:, None] + norms_y[None, :] - 2.0 * xy,
    )


def _median(distances: _Distances) -> Float[Tensor, ""]:
    """Median over all pairs of different rows, each pair once."""
    within_x, within_y = _pairs(distances.xx), _pairs(distances.yy)
    return torch.cat([within_x, within_y, distances.xy.flatten()]).detach().median()


def _pairs(within: Float[Tensor, "n n"]) -> Float[Tensor, " n_pairs"]:
    row, column = torch.triu_indices(len(within), len(within), offset=1, device=within.device)
    return within[row, column]


def _kernels(distances: _Distances, gammas: Sequence[float]) -> _Distances:
    """Sums the Gaussian kernels of each distance, of all three blocks in a few operations."""
    rows = torch.cat([distance.flatten() for distance in distances])
    # Rounding can give values below 0. At the lower bound a kernel is exactly 1, with gradient 0.
    rows = rows.clamp_min(_MIN_SQUARED_DISTANCE)
    kernels = (rows * _negative(tuple(gammas), rows.device)).exp().sum(dim=0)
    blocks = torch.split(kernels, [distance.numel() for distance in distances])
    shaped = zip(blocks, distances, strict=True)
    return _Distances(*(block.view_as(distance) for block, distance in shaped))


@lru_cache(maxsize=8)
def _negative(gammas: tuple[float, ...], device: torch.device) -> Float[Tensor, "G 1"]:
    """Copied to the device once, without waiting for it."""
    with torch.inference_mode(mode=False):  # a training may use it later
        negative = torch.tensor([[-gamma] for gamma in gammas], dtype=torch.float64)
        return negative.to(device, non_blocking=True)


def _mean_of_others(kernel: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Mean over pairs of different rows."""
    num_rows = len(kernel)
    return (kernel.sum() - kernel.trace()) / max(1, num_rows * (num_rows - 1))
