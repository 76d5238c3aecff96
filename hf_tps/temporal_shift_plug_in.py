"""Temporal shifts for an image transformer that is already there: forward hooks on its sub-modules, and out again.

    model = AutoModel.from_pretrained("facebook/dinov2-base")
    add_temporal_shift(model, num_frames=8, shift="patch")
    features = model(clips.flatten(0, 1)).last_hidden_state  # clips: (batch, 8, channels, height, width)
    remove_temporal_shift(model)

The model then takes the frames of all clips as its batch, frame after frame. Where each shift acts:

    | shift      | acts on                                                                 | as in   | tokens it moves      |
    |------------|-------------------------------------------------------------------------|---------|----------------------|
    | "patch"    | the input of the attention; back again before its output projection     | TPS     | patches              |
    | "channel"  | the input of the attention, head by head                                | TPS     | all                  |
    | "mixing"   | keys and values, counted over the channels of all heads                 | XViT    | all                  |
    | "periodic" | the input of the output projection, head by head                        | LAPS    | all                  |
    | "plain"    | the input of the output projection, counted over all channels           | LAPS    | all                  |
    | "token"    | the residual stream, before the attention and before the MLP            | TokShift| the class token      |

Hooks keep no state: what they know of the map of patches, they were told when they were added, and a call with images
that it does not fit is refused.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .index_cache import cached_by_shape
from .layers import pair
from .temporal_shift import (
    channel_shift,
    mixing_shift,
    patch_shift,
    periodic_shift,
    resolve_patch_shift_pattern,
    token_shift,
)


class ImageTransformer(NamedTuple):
    """What the hooks must know of a family. In Transformers 5.20 and later all have `attention.{q,k,v,o}_proj`."""

    layer: str  # class name of a layer
    mlp_norm: str  # the layer's norm ahead of its MLP
    prefix_tokens: int  # class and distillation tokens ahead of the patches; registers are told by the config
    windowed: bool = False  # attention within windows (Swin)
    biased: bool = False  # a bias for each head is added to the scores


IMAGE_TRANSFORMERS = {
    "ViTModel": ImageTransformer("ViTLayer", "layernorm_after", 1),
    "DeiTModel": ImageTransformer("DeiTLayer", "layernorm_after", 2),
    "Dinov2Model": ImageTransformer("Dinov2Layer", "norm2", 1),
    "Dinov2WithRegistersModel": ImageTransformer("Dinov2WithRegistersLayer", "norm2", 1),
    "DINOv3ViTModel": ImageTransformer("DINOv3ViTLayer", "norm2", 1),
    "SwinModel": ImageTransformer("SwinLayer", "layernorm_after", 0, windowed=True, biased=True),
    "BeitModel": ImageTransformer("BeitLayer", "layernorm_after", 1, biased=True),
}


class Shift(NamedTuple):
    """A shift's function, and its default `shift_div`: that of TPSConfig, XViTConfig, LAPSConfig."""

    function: Callable[..., torch.Tensor]
    shift_div: int | None


SHIFTS = {
    "patch": Shift(patch_shift, None),
    "channel": Shift(channel_shift, 8),
    "mixing": Shift(mixing_shift, 4),
    "periodic": Shift(periodic_shift, 4),
    "plain": Shift(periodic_shift, 4),
    "token": Shift(token_shift, 4),
}

HANDLES = "_temporal_shift_handles"  # on the base model while it is plugged


Move = Callable[[torch.Tensor], torch.Tensor]


class FrameLayout(NamedTuple):
    """How the frames of a clip lie in the batch of a layer's attention."""

    num_frames: int
    prefix_tokens: int
    grid: tuple[int, int]  # rows and columns of the layer's map of patches
    windowed: bool

    def split(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(images, tokens, channels), or (images * windows, places, channels), to (batch, frames, [windows,] ..., channels)."""
        if not self.windowed:
            return hidden_states.unflatten(0, (-1, self.num_frames))
        side = math.isqrt(hidden_states.shape[1])
        windows = -(-self.grid[0] // side) * -(-self.grid[1] // side)
        return hidden_states.unflatten(0, (-1, self.num_frames, windows))

    def map_of(self, places: int) -> tuple[int, int]:
        """Rows and columns of so many places: a window, the map that the model was plugged for, or a square one."""
        if not self.windowed and self.grid[0] * self.grid[1] == places:
            return self.grid
        return math.isqrt(places), math.isqrt(places)


def shift_in_time(hidden_states: torch.Tensor, layout: FrameLayout, move: Move) -> torch.Tensor:
    """`move`, a shift of (batch, frames, ..., channels), on the batch of a layer."""
    return move(layout.split(hidden_states)).reshape(hidden_states.shape)


Pattern = tuple[tuple[int, ...], ...]


@cached_by_shape
def patch_order(
    layout: FrameLayout, tokens: int, pattern: Pattern, inverse: bool, device: torch.device
) -> torch.Tensor:
    """
    Which token of a clip each token takes under the patch shift: windows, the tokens ahead of the patches (which stay) and the
    shift itself as one gather.

    Args:
        tokens: of an image, or of a window.

    Returns:
        (images or windows of a clip * tokens,) int64.
    """
    images = layout.num_frames
    if layout.windowed:
        side = math.isqrt(tokens)
        images *= -(-layout.grid[0] // side) * -(-layout.grid[1] // side)
    numbers = torch.arange(images * tokens, device=device).view(images, tokens, 1)
    clip = layout.split(numbers)
    if layout.windowed:
        maps = clip.transpose(1, 2).flatten(0, 1).unflatten(2, layout.map_of(tokens))
        shifted = patch_shift(maps, pattern, inverse).flatten(2, 3)
        return shifted.unflatten(0, (1, -1)).transpose(1, 2).flatten()
    prefix = layout.prefix_tokens
    maps = clip[:, :, prefix:].unflatten(2, layout.map_of(tokens - prefix))
    shifted = patch_shift(maps, pattern, inverse).flatten(2, 3)
    return torch.cat((clip[:, :, :prefix], shifted), dim=2).flatten()


def shift_patches(hidden_states: torch.Tensor, layout: FrameLayout, pattern: Pattern, inverse: bool) -> torch.Tensor:
    """The patch shift on the batch of a layer; tokens ahead of the patches stay."""
    tokens, channels = hidden_states.shape[1:]
    order = patch_order(layout, tokens, pattern, inverse, hidden_states.device)
    clips = hidden_states.reshape(-1, order.shape[0], channels)
    return clips.index_select(1, order).view(hidden_states.shape)


def replace_hidden_states(move: Move, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook: the module reads the moved hidden states, its first argument."""
    if args:
        return (move(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": move(kwargs["hidden_states"])}


def replace_input(move: Move, module: nn.Module, args: tuple) -> tuple:
    """Forward pre-hook of a projection."""
    return (move(args[0]), *args[1:])


def replace_output(move: Move, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    """Forward hook of a projection."""
    return move(output)


def shift_class_token_in_place(move: Move, module: nn.Module, args: tuple):
    """
    Forward pre-hook of the norm ahead of the MLP. The residual path goes around the norm with the same tensor, the fresh
    sum of attention and residual, so it is this tensor itself that changes.
    """
    class_token = args[0][:, :1]
    class_token.copy_(move(class_token))


class ClipCheck(NamedTuple):
    """Forward pre-hook of the base model: refuses what the other hooks would tear apart."""

    num_frames: int
    patch_size: tuple[int, int]
    layout: FrameLayout | None  # None: the shift does not ask where the patches lie
    any_square: bool  # square maps of any size will do as well

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict):
        pixel_values = args[0] if args else kwargs.get("pixel_values")
        if pixel_values is None:
            return  # the model has its own word for that
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[0] % self.num_frames:
            raise ValueError(
                f"With a temporal shift over {self.num_frames} frames the model takes (batch * {self.num_frames}, channels, "
                f"height, width), the frames of a clip one after the other; got {shape}. A batch of clips becomes that by "
                "`clips.flatten(0, 1)`; for another number of frames remove the shift and add it again."
            )
        if self.layout is None:
            return
        grid = patch_grid(shape[2:], self.patch_size, self.layout.windowed)
        square = self.any_square and grid == self.layout.map_of(grid[0] * grid[1])
        if grid != self.layout.grid and not square:
            raise ValueError(
                f"The temporal shift was added for maps of {self.layout.grid[0]} x {self.layout.grid[1]} patches"
                f"{' and square ones' if self.any_square else ''}; images of {shape[2]} x {shape[3]} pixels have {grid[0]} x "
                f"{grid[1]}. Remove the shift and add it again with image_size=({shape[2]}, {shape[3]})."
            )


def patch_grid(image_size: Sequence[int], patch_size: Sequence[int], padded: bool) -> tuple[int, int]:
    """Rows and columns of patches; Swin pads an image to whole patches, the others cut off the rest."""
    rows, columns = (
        -(-side // patch) if padded else side // patch for side, patch in zip(image_size, patch_size, strict=True)
    )
    return rows, columns


def check_at_least(name: str, value: int, least: int):
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def find_image_transformer(model: nn.Module) -> nn.Module:
    """The one base model of the table in `model`, which may be itself."""
    found = [module for module in model.modules() if type(module).__name__ in IMAGE_TRANSFORMERS]
    if len(found) != 1:
        what = f"has {len(found)} of them" if found else "is or has none of them"
        raise ValueError(
            f"A temporal shift can be added to {', '.join(IMAGE_TRANSFORMERS)} of Transformers, or to a model around one; "
            f"{type(model).__name__} {what}."
        )
    return found[0]


def find_layers(base: nn.Module, family: ImageTransformer) -> list[nn.Module]:
    """The layers of the base model, in order, with every part that a hook may ask for."""
    parts = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", family.mlp_norm)
    layers = [module for module in base.modules() if type(module).__name__ == family.layer]
    for layer in layers:
        names = {name for name, _ in layer.named_modules()}
        missing = [part for part in parts if part not in names]
        if missing or not hasattr(layer.attention, "head_dim"):
            raise ValueError(
                f"{family.layer} of this {type(base).__name__} lacks {', '.join(missing) or 'attention.head_dim'}: a layout "
                "that is not known here (known: Transformers 5.20 to 5.23)."
            )
    if not layers:
        raise ValueError(f"This {type(base).__name__} has no {family.layer}, so that there is nothing to shift.")
    return layers


def check_attention_implementation(base: nn.Module, family: ImageTransformer):
    implementation = base.config._attn_implementation or "eager"
    refused = ("flash", "flex", "paged") if family.biased else ("paged",)
    if any(kind in implementation for kind in refused):
        raise ValueError(
            f"attn_implementation={implementation!r} cannot work in a {type(base).__name__} with a temporal shift"
            f"{', whose attention adds a bias to the scores' if family.biased else ''}: take 'sdpa' or 'eager'."
        )


def check_layer_numbers(layers: Iterable[int] | None, count: int) -> list[int]:
    """The numbers of the layers that shift, sorted."""
    if layers is None:
        return list(range(count))
    if not isinstance(layers, Iterable):
        raise ValueError(f"layers is a list of layer numbers, or None for all; got {layers!r}.")
    numbers = list(layers)
    outside = [number for number in numbers if not isinstance(number, int) or not 0 <= number < count]
    if outside or not numbers:
        raise ValueError(f"layers names {outside or 'none'}; there are layers 0 to {count - 1} (None: all).")
    return sorted(set(numbers))


def check_given_for_another_shift(shift: str, **settings):
    for name, (value, meant_for) in settings.items():
        if value is not None and shift not in meant_for:
            raise ValueError(f"{name} is a setting of shift={' or '.join(map(repr, meant_for))}, not of {shift!r}.")


def check_shift_settings(
    shift: str,
    shift_div: int | None,
    pattern: str | Sequence[Sequence[int]] | None,
    segment_length: int | None,
    temporal_window: int | None,
):
    """What can be said of the settings of `add_temporal_shift` before there is a model."""
    if shift not in SHIFTS:
        raise ValueError(f"Unknown shift {shift!r}: give one of {', '.join(map(repr, SHIFTS))}.")
    check_given_for_another_shift(
        shift,
        pattern=(pattern, ["patch"]),
        shift_div=(shift_div, [name for name in SHIFTS if name != "patch"]),
        segment_length=(segment_length, ["mixing"]),
        temporal_window=(temporal_window, ["mixing"]),
    )
    for name, value, least in (
        ("shift_div", shift_div, 2),
        ("segment_length", segment_length, 1),
        ("temporal_window", temporal_window, 1),
    ):
        if value is not None:
            check_at_least(name, value, least)
    if pattern is not None:
        resolve_patch_shift_pattern(pattern)


def check_something_moves(shift: str, shift_div: int, window: int, number: int, attention: nn.Module):
    """The channels that `shift_div` divides give each moving group one at least."""
    width, inner = attention.q_proj.in_features, attention.o_proj.in_features
    heads = inner // attention.head_dim
    if shift == "channel" and width % heads:
        raise ValueError(f"shift='channel' goes head by head: {width} channels are no multiple of {heads} heads.")
    divided = {"channel": width // heads, "periodic": attention.head_dim, "token": width}
    channels = divided.get(shift, inner)
    if channels // shift_div // window == 0:
        raise ValueError(
            f"shift={shift!r} would move nothing in layer {number}: shift_div={shift_div} of {channels} channels"
            f"{f' in a temporal window of {window}' if window > 1 else ''} is less than one."
        )


def layouts_of_layers(
    base: nn.Module, family: ImageTransformer, num_frames: int, image_size: int | Sequence[int] | None
) -> list[FrameLayout]:
    """How the frames lie in each layer, for images of this size (None: the config's)."""
    sizes, patch_size = pair(base.config.image_size if image_size is None else image_size), pair(base.config.patch_size)
    for side, patch in zip(sizes, patch_size, strict=True):
        check_at_least("image_size", side, patch)
    grid = patch_grid(sizes, patch_size, family.windowed)
    prefix_tokens = family.prefix_tokens + getattr(base.config, "num_register_tokens", 0)
    layout = FrameLayout(num_frames, prefix_tokens, grid, family.windowed)
    if not family.windowed:
        return [layout] * base.config.num_hidden_layers
    # the map of each stage is half as high and half as wide as the one before, rounded up
    stages = [stage for stage, depth in enumerate(base.config.depths) for _ in range(depth)]
    return [layout._replace(grid=tuple(-(-side // 2**stage) for side in grid)) for stage in stages]


def hook_layer(
    layer: nn.Module, family: ImageTransformer, shift: str, move: Move, move_back: Move | None = None
) -> list[RemovableHandle]:
    """The hooks of a shift on a layer. `move` goes there, `move_back` (of the patch shift) undoes it."""
    attention = layer.attention
    if shift == "mixing":
        return [
            projection.register_forward_hook(partial(replace_output, move))
            for projection in (attention.k_proj, attention.v_proj)
        ]
    if shift in ("periodic", "plain"):
        return [attention.o_proj.register_forward_pre_hook(partial(replace_input, move))]
    reads_moved = partial(replace_hidden_states, move)
    if shift == "token":
        return [
            layer.register_forward_pre_hook(reads_moved, with_kwargs=True),
            layer.get_submodule(family.mlp_norm).register_forward_pre_hook(partial(shift_class_token_in_place, move)),
        ]
    handles = [attention.register_forward_pre_hook(reads_moved, with_kwargs=True)]
    if move_back is not None:
        handles.append(attention.o_proj.register_forward_pre_hook(partial(replace_input, move_back)))
    return handles


def add_temporal_shift(
    model: nn.Module,
    num_frames: int,
    shift: str = "patch",
    shift_div: int | None = None,
    pattern: str | Sequence[Sequence[int]] | None = None,
    layers: Iterable[int] | None = None,
    segment_length: int | None = None,
    temporal_window: int | None = None,
    image_size: int | Sequence[int] | None = None,
) -> nn.Module:
    """
    Let the layers of a live image transformer exchange features between the frames of a clip.

    The model then takes (batch * num_frames, channels, height, width), the frames of each clip one after the other, and
    gives its outputs per frame. Nothing is learned anew: parameters, state dict and config stay as they are. On a clip of
    equal frames "patch" and "channel" leave the features of the image model; the others read zeros beyond the ends of a
    clip. With "token" each of `hidden_states` but the last is what its layer reads, after the shift.

    Args:
        model: ViTModel, DeiTModel, Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel, SwinModel, BeitModel of
            Transformers, or a model around one of them such as an image classifier.
        num_frames: frames of a clip.
        shift: "patch" or "channel" (TPS), "mixing" (XViT), "periodic" or "plain" (LAPS), "token" (TokShift: the class
            token, so not in Swin). The head of this file tells where each acts.
        shift_div: each of the two moving groups has 1/shift_div of the channels. None: the method's own (channel 8, the
            others 4).
        pattern: of the patch shift: "A", "B", "C" (None), "D" or a matrix of frame offsets; tiled from the corner of the
            map of patches, in Swin from the corner of each window.
        layers: numbers of the layers that shift, in Swin counted through all stages; None: all.
        segment_length: of the mixing: frames that exchange (XViT); None: the whole clip.
        temporal_window: of the mixing: how many frames away a neighbour may be (XViT); None: 1.
        image_size: height and width of the images, or one number for both. Asked for only where the shift depends on where
            the patches lie. None: that of the model's config; outside Swin also square images of any size.

    Returns:
        The model, changed in place.

    Raises:
        ValueError: for a model that is not in the list or is plugged already, settings out of range or meant for another
            shift, layers that do not exist, an attention implementation that cannot work. The model is untouched then.
            Later, at a call: for a batch that is no multiple of `num_frames`, and images that the shift was not added for.
    """
    base = find_image_transformer(model)
    family = IMAGE_TRANSFORMERS[type(base).__name__]
    if hasattr(base, HANDLES):
        raise ValueError("The model has a temporal shift already: remove_temporal_shift(model) comes first.")
    check_at_least("num_frames", num_frames, 1)
    check_shift_settings(shift, shift_div, pattern, segment_length, temporal_window)
    if shift == "token" and not family.prefix_tokens:
        raise ValueError(f"shift='token' moves the class token, and a {type(base).__name__} has none.")
    all_layers = find_layers(base, family)
    numbers = check_layer_numbers(layers, len(all_layers))
    check_attention_implementation(base, family)
    window = 1 if temporal_window is None else temporal_window
    if shift == "patch":
        offsets = resolve_patch_shift_pattern("C" if pattern is None else pattern)
    else:
        shift_div = SHIFTS[shift].shift_div if shift_div is None else shift_div
        for number in numbers:
            check_something_moves(shift, shift_div, window, number, all_layers[number].attention)
    layouts = layouts_of_layers(base, family, num_frames, image_size)
    check = ClipCheck(
        num_frames,
        pair(base.config.patch_size),
        layouts[0] if family.windowed or shift == "patch" else None,
        any_square=image_size is None and not family.windowed,
    )

    handles = [base.register_forward_pre_hook(check, with_kwargs=True)]
    for number in numbers:
        layer = all_layers[number]
        if shift == "patch":
            moves = [
                partial(shift_patches, layout=layouts[number], pattern=offsets, inverse=back) for back in (False, True)
            ]
        else:
            heads = layer.attention.o_proj.in_features // layer.attention.head_dim
            settings = {
                "channel": {"num_heads": heads},
                "mixing": {"segment_length": segment_length, "window": window},
                "periodic": {"num_heads": heads},
                "plain": {"num_heads": 1},
                "token": {},
            }[shift]
            move = partial(SHIFTS[shift].function, shift_div=shift_div, **settings)
            moves = [partial(shift_in_time, layout=layouts[number], move=move)]
        handles += hook_layer(layer, family, shift, *moves)
    setattr(base, HANDLES, handles)
    return model


def remove_temporal_shift(model: nn.Module) -> nn.Module:
    """
    Undo `add_temporal_shift`: the model computes again what it computed before, to the bit.

    Returns:
        The model, changed in place.

    Raises:
        ValueError: if no temporal shift was added.
    """
    base = find_image_transformer(model)
    if not hasattr(base, HANDLES):
        raise ValueError(f"This {type(base).__name__} has no temporal shift to remove.")
    for handle in getattr(base, HANDLES):
        handle.remove()
    delattr(base, HANDLES)
    return model


__all__ = ["add_temporal_shift", "remove_temporal_shift"]
