"""Schedule-free AdamW is the algorithm of its paper, whatever shares the weights are stepped in."""

import pytest
import torch

from finetune_trainer.worker.schedule_free import ScheduleFreeAdamW

RATES = (1e-3, 2e-3, 2e-3, 2e-3, 2e-3)
BETAS, EPSILON, DECAY = (0.9, 0.99), 1e-8, 0.1


def gradients(weights: torch.Tensor, step: int) -> torch.Tensor:
    return torch.sin(weights * (step + 1))


def by_the_paper(start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Algorithm 1 of arXiv 2405.15682 with AdamW as its base: y and x after the last step."""
    x, z, squares, total = start.clone(), start.clone(), torch.zeros_like(start), 0.0
    for step, rate in enumerate(RATES):
        y = (1 - BETAS[0]) * z + BETAS[0] * x
        gradient = gradients(y, step)
        squares = BETAS[1] * squares + (1 - BETAS[1]) * gradient**2
        scaled = gradient / ((squares / (1 - BETAS[1] ** (step + 1))).sqrt() + EPSILON)
        z = z - rate * (scaled + DECAY * y)
        total += max(RATES[: step + 1]) ** 2
        share = max(RATES[: step + 1]) ** 2 / total
        x = (1 - share) * x + share * z
    return (1 - BETAS[0]) * z + BETAS[0] * x, x


@pytest.mark.parametrize("shares", [1, 3])
def test_it_is_the_algorithm_of_the_paper(shares: int) -> None:
    start = torch.linspace(-1, 1, 12, dtype=torch.float64)
    weights = [torch.nn.Parameter(part.clone()) for part in start.chunk(shares)]
    optimizer = ScheduleFreeAdamW(weights, lr=RATES[0], betas=BETAS, eps=EPSILON, weight_decay=DECAY)
    for step, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        for weight in weights:
            weight.grad = gradients(weight.detach(), step)
        for weight in weights:  # one share after the other, as under ZeRO-3
            optimizer.param_groups[0]["params"] = [weight]
            optimizer.step()
    y, x = by_the_paper(start)
    held = torch.cat([weight.detach() for weight in weights])
    steps = torch.cat([optimizer.state[weight]["z"] for weight in weights])
    assert torch.allclose(held, y, rtol=1e-12, atol=0)
    assert torch.allclose(held.lerp(steps, 1 - 1 / BETAS[0]), x, rtol=1e-9, atol=0)
