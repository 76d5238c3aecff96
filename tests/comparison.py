"""How close two tensors must be that were computed in two ways: another kernel, batch, thread count or copy of a model.

Each of them may sum in another order, so that only the size of the numbers tells what is rounding. Bits (`torch.equal`)
are for the same tensors that go through the same operators twice.
"""

from contextlib import AbstractContextManager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def assert_close_to_spread(actual: torch.Tensor, expected: torch.Tensor, share: float = 5e-5) -> None:
    """No entry of `actual` is further from that of `expected` than `share` of the standard deviation of `expected`.

    Args:
        actual, expected: of the same shape, dtype and device, with at least two different entries.
        share: 5e-5 is far above the rounding of float32 in a small model, and far below what a wrong method changes.
    """
    spread = expected.detach().double().std().item()
    assert spread > 0, "the expected tensor has no spread to measure by"
    torch.testing.assert_close(actual, expected, rtol=0, atol=share * spread)


def assert_gradients_close(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float = 1e-4
) -> None:
    """The same names, and no entry of a gradient further away than `share` of the largest entry of this gradient.

    A gradient that is zero but for rounding, such as that of a key's bias before softmax, has no size of its own: a
    hundredth of the share of the largest entry of all gradients is allowed as well.
    """
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        allowed = share * max(gradient.abs().max().item(), largest / 100)
        torch.testing.assert_close(
            actual[name], gradient, rtol=0, atol=allowed, msg=lambda text, name=name: f"{name}: {text}"
        )


def unfused_attention() -> AbstractContextManager:
    """A context in which `scaled_dot_product_attention` takes its plain kernel.

    The fused one for bfloat16 asks the processor what it can do and then raises, where ATEN_CPU_CAPABILITY has told the
    rest of torch to use less.
    """
    return sdpa_kernel(SDPBackend.MATH)
