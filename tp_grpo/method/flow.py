"""Denoising steps of flow matching, their log-probabilities and their KL.

`x_sigma = (1 - sigma) x_0 + sigma eps`; the model predicts the velocity `v ~ eps - x_0`; `sigma`
falls from 1 to 0 along `sigmas[0..T]`. A step is a point (the ODE) or a Gaussian, of two kinds:

- `sde`: Flow-GRPO, arXiv 2505.05470. It samples the target in the limit of many steps (at a noise
  level a < 1 the error of the first steps, where sigma is near 1, fades only as `T^(-a^2)`).
- `cps`: Flow-CPS, arXiv 2509.05952. Every state holds the predicted x_0 and noise in exactly the
  schedule's proportions. The noise of a step does not shrink with their number, so many steps at
  one noise level a give samples that are too narrow (a Gaussian keeps the share
  `(1 + cos(a pi / 2)) / 2` of its variance), unless `a^2` is proportional to 1 / T.

Everywhere: `x`, `v` (B, *L) with at least one latent dim, of any float dtype, which is kept;
`sigma` a float, a 0-dim tensor or (B,). Log-probs and KL are MEANS over `*L`, in the published
scales that clip ranges and KL weights assume.
"""

import math

import torch
from torch import Tensor

from tp_grpo.types import Step

Sigma = float | Tensor
KINDS = ("sde", "cps")  # of stochastic steps


def ode_step(x: Tensor, v: Tensor, sigma: Sigma, sigma_next: Sigma) -> Tensor:
    """One Euler step of the flow `dx = v dsigma`: x (B, *L) at `sigma` -> at `sigma_next`."""
    return x + v * (along(x, sigma_next) - along(x, sigma))


def sde_step(
    x: Tensor, v: Tensor, sigma: Sigma, sigma_next: Sigma, *, noise_level: float, sigma_cap: Sigma
) -> Step:
    """One Euler-Maruyama step of the SDE with the marginals of the ODE (Flow-GRPO, SDE sampling).

    `noise_level` a >= 0 sets `g = a sqrt(sigma / (1 - sigma))`, the paper's sigma_t; a = 0 is the
    ODE. `sigma` in (0, 1]: where it is 1, the `1 - sigma` in `g` uses `sigma_cap` < 1. The step's
    std is `g sqrt(-dt)`, but the KL scale is `g`: Flow-GRPO leaves `sqrt(-dt)` out of its KL, and
    its published beta assumes that.
    """
    sigma, sigma_next, sigma_cap = along(x, sigma), along(x, sigma_next), along(x, sigma_cap)
    dt = sigma_next - sigma
    g = noise_level * torch.sqrt(sigma / (1 - torch.where(sigma == 1, sigma_cap, sigma)))
    half = g**2 * dt / (2 * sigma)
    return Step(
        mean=x * (1 + half) + v * (dt + half * (1 - sigma)), std=g * torch.sqrt(-dt), kl_scale=g
    )


def cps_step(x: Tensor, v: Tensor, sigma: Sigma, sigma_next: Sigma, *, noise_level: float) -> Step:
    """One coefficients-preserving step (Flow-CPS): fresh noise replaces part of the predicted.

    `noise_level` a in [0, 1] is the share of a right angle: the next state must hold `sigma_next`
    of noise, `sigma_next sin(a pi / 2)` of it fresh and `sigma_next cos(a pi / 2)` predicted, the
    cosine being `sqrt(sigma_next^2 - std^2)` without its cancellation; a = 0 is the ODE. The KL
    scale is the std; both are 0 at `sigma_next` = 0.
    """
    sigma, sigma_next = along(x, sigma), along(x, sigma_next)
    angle = noise_level * math.pi / 2
    clean, noise = x - sigma * v, x + (1 - sigma) * v
    std = sigma_next * math.sin(angle)
    return Step(
        mean=(1 - sigma_next) * clean + sigma_next * math.cos(angle) * noise, std=std, kl_scale=std
    )


def transition(
    kind: str, x: Tensor, v: Tensor, sigmas: Tensor, step: int | Tensor, *, noise_level: float
) -> Step:
    """The stochastic step `sigmas[step] -> sigmas[step + 1]` of a schedule (T+1,).

    step: one number in [0, T), or (B,) of them. Raises ValueError for another kind.
    """
    sigma, sigma_next = sigmas[step], sigmas[step + 1]
    if _is_sde(kind):
        return sde_step(x, v, sigma, sigma_next, noise_level=noise_level, sigma_cap=sigmas[1])
    return cps_step(x, v, sigma, sigma_next, noise_level=noise_level)


def log_prob(kind: str, x_next: Tensor, step: Step) -> Tensor:
    """Log-probability of `x_next` (B, *L) under `step` -> (B,), a mean over `*L`.

    `sde`: the Gaussian log-density in nats a dimension, which needs std > 0. `cps`:
    `-(x_next - mean)^2`, without the constants and without `1 / 2 std^2` (Flow-CPS). Raises
    ValueError for an unknown kind.
    """
    square = (x_next - step.mean) ** 2
    if _is_sde(kind):
        return _mean(
            -square / (2 * step.std**2) - torch.log(step.std) - math.log(math.sqrt(2 * math.pi))
        )
    return _mean(-square)


def log_ratio(kind: str, x_next: Tensor, step: Step, mean_old: Tensor) -> Tensor:
    """`log_prob` under `step` minus that under the old mean (B, *L), same std -> (B,).

    The difference of squares is factored, `(m - m_old) (2 x' - m - m_old)`: the difference of two
    rounded log-probs would drown a ratio of 1 +- 1e-5. Equal means give exactly 0, with the
    gradient of `log_prob`. Raises ValueError for an unknown kind.
    """
    product = (step.mean - mean_old) * (2 * x_next - step.mean - mean_old)
    return _mean(product / (2 * step.std**2) if _is_sde(kind) else product)


def kl(step: Step, mean_ref: Tensor) -> Tensor:
    """KL of `step` from the frozen model's, of mean `mean_ref` (B, *L) -> (B,), a mean over `*L`.

    `(mean - mean_ref)^2 / (2 kl_scale^2)` (Flow-GRPO, KL term); for `sde` this is `-dt` times the
    KL of the two Gaussians, for `cps` the KL itself. Needs kl_scale > 0.
    """
    return _mean((step.mean - mean_ref) ** 2 / (2 * step.kl_scale**2))


def step_weights(
    kind: str, sigmas: Tensor, window: range, *, noise_level: float, by: str = "velocity"
) -> Tensor:
    """Weights (K,) of mean 1 for the window's steps.

    by `velocity`: the inverse of how v moves `log_prob` there. Its gradient along v scales with
    `|d mean / d v| / std` for `sde` and with `|d mean / d v| std` for `cps`, whose log-prob is not
    divided by the variance. by `noise`: the std (TempFlow-GRPO, arXiv 2508.04324). Needs
    noise_level > 0. Raises ValueError for an unknown kind.
    """
    x, v = sigmas.new_zeros(1, 1), sigmas.new_ones(1, 1)
    steps = [transition(kind, x, v, sigmas, i, noise_level=noise_level) for i in window]
    spread = [step.std if _is_sde(kind) or by == "noise" else 1 / step.std for step in steps]
    moved = [1.0 if by == "noise" else step.mean.abs() for step in steps]
    weights = torch.stack([(s / m).reshape(()) for s, m in zip(spread, moved, strict=True)])
    return weights / weights.mean()


def _is_sde(kind: str) -> bool:
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}: a stochastic step is 'sde' or 'cps'")
    return kind == "sde"


def along(x: Tensor, sigma: Sigma) -> Tensor:
    """`sigma` in the dtype of `x`, 0-dim or (B, 1, .., 1)."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)
