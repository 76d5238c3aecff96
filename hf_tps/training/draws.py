"""Random numbers of a clip: always from the generator that is given."""

import torch


def uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """A number between the two."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def below(generator: torch.Generator, count: int) -> int:
    """A whole number, 0 to count - 1."""
    return int(torch.randint(count, (), generator=generator))


def sign(generator: torch.Generator) -> int:
    """1 or -1."""
    return 1 if below(generator, 2) else -1
