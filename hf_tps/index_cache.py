"""One decorator: index tensors that depend on shapes alone are built once and kept, a bounded number of them."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def cached_by_shape(build: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Cache what `build` returns by its (hashable) arguments, device included, least recently used out.

    Under `torch.compile` and `torch.export` the cache is bypassed: what is built there are symbols of a trace, which
    must not meet a later eager call. And nothing is ever built as an inference tensor, which a training step that comes
    after an evaluation could not use.
    """

    @functools.lru_cache(maxsize=256)
    def cached(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.inference_mode(False):
            return build(*args, **kwargs)

    @functools.wraps(build)
    def lookup(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            return build(*args, **kwargs)
        return cached(*args, **kwargs)

    return lookup
