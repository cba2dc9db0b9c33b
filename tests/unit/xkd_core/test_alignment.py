"""Facts about domain alignment: the formulas again, and numbers where the published form fails."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from xkd_core.alignment import alignment_distance, coral, mmd
from xkd_core.config import ObjectiveConfig

GAMMAS = ObjectiveConfig().mmd_gammas
COSINES = (0.0, 0.5, 0.8, 0.9, 0.99, 0.999, 0.9999, 0.99999)
AUTOCAST = (None, torch.bfloat16, torch.float16)


def head_rows(num_rows, width, cosine):
    """Rows as the head gives them: the mean of squares is 1, any two have about that cosine."""
    common, own = torch.randn(1, width), torch.randn(num_rows, width)
    return F.layer_norm(cosine**0.5 * common + (1.0 - cosine) ** 0.5 * own, (width,))


def pair_of_sets(num_rows, width, cosine):
    return head_rows(2 * num_rows, width, cosine).chunk(2)


def kernel_mean(x, y, gammas=GAMMAS):
    distances = ((x[:, None, :] - y[None, :, :]) ** 2).sum(axis=-1)
    return sum(np.exp(-gamma * distances) for gamma in gammas).mean()


def exact_mmd(x, y):
    """By differences of rows in float64, not by products."""

    def mean(a, b):
        distances = (a[:, None] - b[None]).square().sum(dim=-1)
        return sum(torch.exp(-gamma * distances) for gamma in GAMMAS).mean()

    return mean(x, x) + mean(y, y) - 2.0 * mean(x, y)


def published_mmd(x, y):
    """By products of rows in whatever type autocast gives them, as in the published code."""

    def mean(a, b):
        norms_a, norms_b = (rows.square().sum(dim=-1, keepdim=True) for rows in (a, b))
        distances = torch.addmm(norms_b.T, a, b.T, alpha=-2.0).add_(norms_a).clamp_min(1e-30)
        return sum(torch.exp(-gamma * distances) for gamma in GAMMAS).mean()

    return mean(x, x) + mean(y, y) - 2.0 * mean(x, y)


def value_and_gradient(function, x, y, autocast_dtype=None):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=autocast_dtype, enabled=autocast_dtype is not None):
        value = function(x, y)
    (gradient,) = torch.autograd.grad(value, x)
    return value.item(), gradient.double()


@pytest.mark.parametrize("cosine", COSINES)
def test_mmd_is_the_formula_in_float64(cosine):
    x, y = pair_of_sets(6, 256, cosine)
    x64, y64 = x.double().numpy(), y.double().numpy()
    expected = kernel_mean(x64, x64) + kernel_mean(y64, y64) - 2 * kernel_mean(x64, y64)
    assert mmd(x, y, GAMMAS).item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("autocast_dtype", AUTOCAST)
@pytest.mark.parametrize("cosine", COSINES)
def test_mmd_and_its_gradient_are_exact_at_every_cosine_under_any_autocast(cosine, autocast_dtype):
    x, y = pair_of_sets(8, 8192, cosine)
    expected, expected_gradient = value_and_gradient(exact_mmd, x.double(), y.double())
    value, gradient = value_and_gradient(lambda x, y: mmd(x, y, GAMMAS), x, y, autocast_dtype)
    assert value == pytest.approx(expected, rel=1e-6)
    largest = expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize(
    ("autocast_dtype", "cosine"),
    [(torch.bfloat16, 0.9999), (torch.bfloat16, 0.99999), (torch.float16, 0.99999)],
)
def test_under_autocast_the_published_form_sees_nothing_between_near_rows(autocast_dtype, cosine):
    x, y = pair_of_sets(8, 8192, cosine)
    value, gradient = value_and_gradient(published_mmd, x, y, autocast_dtype)
    assert value == 0.0
    assert not gradient.any()
    assert mmd(x, y, GAMMAS).item() > 0.5


def test_in_float16_the_published_form_falls_below_0_with_a_wrong_gradient():
    values, alignments = [], []
    for _ in range(12):
        x, y = pair_of_sets(16, 8192, 0.9999)
        _, exact_gradient = value_and_gradient(exact_mmd, x.double(), y.double())
        value, gradient = value_and_gradient(published_mmd, x, y, torch.float16)
        values.append(value)
        alignments.append(F.cosine_similarity(gradient.flatten(), exact_gradient.flatten(), dim=0))
        assert mmd(x, y, GAMMAS).item() > 0.4
    assert min(values) < 0.0
    assert max(alignments) < 0.5


def test_in_float32_the_published_form_loses_some_of_the_kernel_of_a_row_with_itself():
    x, y = pair_of_sets(8, 8192, 0.5)
    exact = exact_mmd(x.double(), y.double()).item()
    assert published_mmd(x, y).item() < exact - 0.01
    assert mmd(x, y, GAMMAS).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("autocast_dtype", AUTOCAST)
@pytest.mark.parametrize("cosine", COSINES)
def test_a_set_is_exactly_0_from_itself(cosine, autocast_dtype):
    x = head_rows(16, 8192, cosine)
    with torch.autocast("cpu", dtype=autocast_dtype, enabled=autocast_dtype is not None):
        assert mmd(x, x.clone(), GAMMAS).item() == 0.0
        assert mmd(x, x.clone(), GAMMAS, unit_sphere=True, bandwidth="median").item() == 0.0
        assert coral(x, x.clone()).item() == 0.0


@pytest.mark.parametrize("cosine", COSINES)
def test_the_kernel_of_a_row_with_itself_is_exactly_7(cosine):
    rows = head_rows(4, 8192, cosine)
    for row in rows.split(1):
        assert mmd(row, -row, GAMMAS).item() == 14.0


def test_decorrelated_rows_are_the_constant_of_the_diagonals_apart():
    x, y = torch.randn(32, 8192), torch.randn(32, 8192)
    assert mmd(x, y, GAMMAS).item() == 0.4375
    assert mmd(x, y, GAMMAS, unbiased=True).item() == pytest.approx(0.0, abs=1e-7)


def test_equal_rows_give_finite_gradients():
    kernels = ({}, {"bandwidth": "median"}, {"unit_sphere": True}, {"unbiased": True})
    for kernel in kernels:
        x = head_rows(1, 64, 0.0).expand(4, -1).clone().requires_grad_()
        mmd(x, x.detach() * (1.0 + 1e-7), GAMMAS, **kernel).backward()
        assert x.grad.isfinite().all(), kernel


@given(st.integers(2, 8), st.integers(2, 8))
def test_the_unbiased_form_leaves_out_the_diagonal(n, m):
    rng = np.random.default_rng(n + 10 * m)
    x, y = rng.normal(size=(n, 4)), rng.normal(size=(m, 4))

    def others(rows):
        kernel = [
            sum(np.exp(-gamma * ((a - b) ** 2).sum()) for gamma in GAMMAS)
            for i, a in enumerate(rows)
            for j, b in enumerate(rows)
            if i != j
        ]
        return np.mean(kernel)

    expected = others(x) + others(y) - 2 * kernel_mean(x, y)
    ours = mmd(torch.from_numpy(x), torch.from_numpy(y), GAMMAS, unbiased=True)
    assert ours.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_sets_of_one_distribution_are_0_apart_on_average_in_the_unbiased_form_alone():
    distances = torch.tensor(
        [
            [mmd(x, y, (0.1,), unbiased=unbiased).item() for unbiased in (True, False)]
            for x, y in (torch.randn(2, 4, 3) for _ in range(800))
        ]
    )
    mean, error = distances.mean(dim=0), distances.std(dim=0) / len(distances) ** 0.5
    assert abs(mean[0]) < 4 * error[0]
    # The expectation of the biased form is (1/n + 1/m) (k(x, x) - E k(x, x')), x' another row.
    assert mean[1] > 15 * error[1]


def test_the_biased_form_pulls_rows_of_one_distribution_together_and_the_unbiased_does_not():
    """Along the shrinking of all rows at once, averaged over draws of small batches."""
    slopes = {True: [], False: []}
    for _ in range(400):
        x, y = torch.randn(2, 3, 8).double()
        for unbiased, found in slopes.items():
            scale = torch.ones((), dtype=torch.float64, requires_grad=True)
            distance = mmd(scale * x, scale * y, (0.05,), unbiased=unbiased)
            (slope,) = torch.autograd.grad(distance, scale)
            found.append(slope.item())
    means = {unbiased: np.mean(found) for unbiased, found in slopes.items()}
    errors = {unbiased: np.std(found) / 400**0.5 for unbiased, found in slopes.items()}
    assert means[False] > 10 * errors[False]  # smaller rows, smaller distance
    assert abs(means[True]) < 4 * errors[True]


def test_one_row_a_set_has_no_others():
    x, y = torch.randn(1, 16), torch.randn(1, 16)
    expected = -2.0 * sum(np.exp(-g * (x - y).double().square().sum().item()) for g in GAMMAS)
    assert mmd(x, y, GAMMAS, unbiased=True).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("unbiased", [False, True])
def test_a_median_bandwidth_does_not_depend_on_the_scale_of_rows(unbiased):
    x, y = torch.randn(6, 32), 0.5 + torch.randn(5, 32)
    options = {"bandwidth": "median", "unbiased": unbiased}
    for scale in (1e-2, 1.0, 90.0):
        torch.testing.assert_close(
            mmd(scale * x, scale * y, GAMMAS, **options), mmd(x, y, GAMMAS, **options)
        )


def test_a_median_bandwidth_is_the_median_over_pairs_of_different_rows():
    x, y = torch.randn(3, 8).double(), torch.randn(2, 8).double()
    rows = torch.cat([x, y])
    pairs = [(rows[i] - rows[j]).square().sum() for i in range(5) for j in range(i)]
    median = torch.stack(pairs).median().item()
    expected = mmd(x, y, [gamma / median for gamma in GAMMAS])
    torch.testing.assert_close(mmd(x, y, GAMMAS, bandwidth="median"), expected)


def test_on_the_unit_sphere_only_directions_matter():
    x, y = torch.randn(4, 16), torch.randn(5, 16)
    expected = mmd(F.normalize(x.double(), dim=-1), F.normalize(y.double(), dim=-1), GAMMAS)
    longer = x * (0.1 + 9.0 * torch.rand(4, 1))
    torch.testing.assert_close(mmd(longer, y, GAMMAS, unit_sphere=True), expected)


@pytest.mark.parametrize("kernel", [{"bandwidth": "median"}, {"unit_sphere": True}])
def test_other_kernels_feel_what_the_fixed_ones_do_not(kernel):
    """Two modalities at a cosine of .2 from each other, and .4 among themselves."""
    common = head_rows(1, 8192, 0.0)
    x, y = ((common + torch.randn(1, 8192) + 1.5 * torch.randn(8, 8192)) for _ in range(2))
    x, y = (F.layer_norm(rows, (8192,)) for rows in (x, y))

    def pull(**kernel):
        """How steeply the distance falls as x moves to the mean of y, by a root of a row's norm."""
        _, gradient = value_and_gradient(lambda x, y: mmd(x, y, GAMMAS, **kernel), x, y)
        return -(gradient * (y.mean(dim=0) - x.mean(dim=0))).sum().item()

    assert abs(pull()) < 1e-3
    assert pull(**kernel) > 0.1
    assert pull(unbiased=True, **kernel) > 0.1


@pytest.mark.parametrize(("n", "m", "width"), [(5, 7, 16), (4, 4, 3), (2, 9, 40)])
def test_coral_is_the_formula(n, m, width):
    x, y = torch.randn(n, width).double(), 0.3 + 2.0 * torch.randn(m, width).double()
    means = (x.mean(dim=0) - y.mean(dim=0)).square().mean()
    covariances = (torch.cov(x.T) - torch.cov(y.T)).square().mean()
    torch.testing.assert_close(coral(x, y), (means + covariances).float())


def test_coral_of_single_rows_compares_their_means():
    x, y = torch.randn(1, 8), torch.randn(1, 8)
    torch.testing.assert_close(coral(x, y), (x - y).square().mean())


def test_the_objectives_settings_choose_the_distance():
    x, y = torch.randn(4, 16), 0.5 + torch.randn(5, 16)
    settings = {
        "mmd_gammas": (0.1, 1.0),
        "mmd_bandwidth": "median",
        "mmd_unit_sphere": True,
        "mmd_unbiased": True,
    }
    expected = mmd(x, y, (0.1, 1.0), bandwidth="median", unit_sphere=True, unbiased=True)
    assert torch.equal(alignment_distance(x, y, ObjectiveConfig(**settings)), expected)
    assert torch.equal(alignment_distance(x, y, ObjectiveConfig()), mmd(x, y, GAMMAS))
    assert torch.equal(alignment_distance(x, y, ObjectiveConfig(alignment="coral")), coral(x, y))
