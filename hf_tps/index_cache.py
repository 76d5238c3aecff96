"""One decorator: index tensors that depend on shapes alone are built once and kept, a bounded number of them."""

import functools
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def cached_by_shape(build: Callable[..., Result]) -> Callable[..., Result]:
    """Cache what `build` returns by its (hashable) arguments, device included, least recently used out.

    Under `torch.compile` and `torch.export` the cache is bypassed: what is built there are symbols of a trace, which
    must not meet a later eager call. And nothing is ever built as an inference tensor, which a training step that comes
    after an evaluation could not use.
    """

    @functools.lru_cache(maxsize=256)
    def cached(*args: Hashable) -> Result:
        with torch.inference_mode(False):
            return build(*args)

    @functools.wraps(build)
    def lookup(*args: Hashable) -> Result:
        if torch.compiler.is_compiling():
            return build(*args)
        return cached(*args)

    return lookup
