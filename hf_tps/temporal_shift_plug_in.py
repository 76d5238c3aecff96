"""Temporal shifts for an image transformer that is already there: forward hooks on its sub-modules, and out again.

    model = AutoModel.from_pretrained("facebook/dinov2-base")
    add_temporal_shift(model, num_frames=8, shift="patch")
    features = model(clips.flatten(0, 1)).last_hidden_state  # clips: (batch, 8, channels, height, width)
    remove_temporal_shift(model)

The model then takes the frames of all clips as its batch, frame after frame. Where each shift acts:

    | shift      | acts on                                                          | as in    | tokens it moves |
    |------------|------------------------------------------------------------------|----------|-----------------|
    | "patch"    | the input of the attention; back again what it attended to       | TPS      | patches         |
    | "channel"  | the input of the attention, head by head                         | TPS      | all             |
    | "mixing"   | keys and values, counted over the channels of all heads          | XViT     | all             |
    | "periodic" | what was attended to, before the output projection, head by head | LAPS     | all             |
    | "plain"    | the same, counted over all channels                              | LAPS     | all             |
    | "token"    | the residual stream, before the attention and before the MLP     | TokShift | the class token |

Nothing is hooked that LoRA or a quantiser replaces: see `plug.py`. Hooks keep no state: what they know of the map of
patches, they were told when they were added, and a call with images that it does not fit is refused.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from .attention_plug import CARRIED, AttentionInputs, AttentionPlug, plug_into_attention
from .index_cache import cached_by_shape
from .layers import pair
from .plug import PLUG_LOCK, Plug, find_in_table, find_one_in_table
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

HANDLES = "_temporal_shift"  # the plug, on the base model while it is in

Move = Callable[[torch.Tensor], torch.Tensor]


class FrameLayout(NamedTuple):
    """How the frames of a clip lie in the batch of a layer's attention."""

    num_frames: int
    prefix_tokens: int
    grid: tuple[int, int]  # rows and columns of the layer's map of patches
    windowed: bool

    def split(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(images or images * windows, tokens or places, channels) to (batch, frames, [windows,] ..., channels)."""
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
    """Which token of a clip each token takes under the patch shift: windows, the tokens ahead of the patches (which
    stay) and the shift itself as one gather.

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


class AttendedShift(AttentionPlug):
    """Moves what was attended to, before the output projection."""

    def __init__(self, move: Move):
        self.move = move

    def after(self, attended: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
        return self.move(attended.flatten(2)).view(attended.shape)


class KeyValueShift(AttentionPlug):
    """Moves keys and values.

    Args:
        move: for (images, tokens, channels), the heads side by side.
        whole_heads: all channels of a head move alike.
    """

    def __init__(self, move: Move, whole_heads: bool):
        self.move = move
        self.whole_heads = whole_heads

    def before(self, inputs: AttentionInputs, carried: dict[str, Any]) -> AttentionInputs:
        key = inputs.key
        # Keys are mixed as they were before their rotary embedding. It pairs channels of a head, turns a place alike in
        # all frames, and so makes no difference unless a part of a head comes from another frame.
        rotation = None if self.whole_heads else carried.get(ROTATION)
        if rotation is not None:
            cosine, sine = rotation
            key = rotate_patches(key, cosine, sine, back=True)
        key = self.of_heads(key)
        if rotation is not None:
            key = rotate_patches(key, cosine, sine)
        return inputs._replace(key=key, value=self.of_heads(inputs.value))

    def of_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        """(images, heads, tokens, head_dim) to the same, moved."""
        side_by_side = tensor.transpose(1, 2)
        return self.move(side_by_side.flatten(2)).view(side_by_side.shape).transpose(1, 2)


ROTATION = "rotation"


def carry_rotation(attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook of an attention with rotary embedding: cosines and sines go along to its kernel."""
    rotation = kwargs.get("position_embeddings") if len(args) < 3 else args[2]
    return args, {**kwargs, CARRIED: {**kwargs.get(CARRIED, {}), ROTATION: rotation}}


def rotate_patches(tensor: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, back: bool = False) -> torch.Tensor:
    """Rotary embedding of DINOv3, or its inverse.

    Args:
        tensor: (images, heads, tokens, head_dim); tokens ahead of the patches stay as they are.
        cosine, sine: (patches, head_dim), both halves of the channels equal.
    """
    prefix, patches = tensor.split((tensor.shape[-2] - cosine.shape[-2], cosine.shape[-2]), dim=-2)
    first, second = patches.chunk(2, dim=-1)
    quarter_turn = torch.cat((-second, first), dim=-1)
    rotated = patches * cosine + quarter_turn * (-sine if back else sine)
    return torch.cat((prefix, rotated.to(tensor.dtype)), dim=-2)


def shift_class_token_in_place(move: Move, module: nn.Module, args: tuple) -> None:
    """Forward pre-hook of the norm ahead of the MLP. The residual path goes around the norm with the same tensor, the
    fresh sum of attention and residual, so it is this tensor itself that changes.
    """
    class_token = args[0][:, :1]
    class_token.copy_(move(class_token))


@dataclass(frozen=True)
class ClipCheck:
    """Forward pre-hook of the base model: refuses what the other hooks would tear apart."""

    num_frames: int
    patch_size: tuple[int, int]
    layout: FrameLayout | None  # None: the shift does not ask where the patches lie
    any_square: bool  # square maps of any size will do as well

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        pixel_values = args[0] if args else kwargs.get("pixel_values")
        if pixel_values is None:
            return  # the model refuses that itself
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[0] % self.num_frames:
            raise ValueError(
                f"With a temporal shift over {self.num_frames} frames the model takes (batch * {self.num_frames}, "
                "channels, "
                f"height, width), the frames of a clip one after the other; got {shape}. A batch of clips becomes that "
                "by "
                "`clips.flatten(0, 1)`; for another number of frames remove the shift and add it again."
            )
        if self.layout is None:
            return
        grid = patch_grid(shape[2:], self.patch_size, self.layout.windowed)
        square = self.any_square and grid == self.layout.map_of(grid[0] * grid[1])
        if grid != self.layout.grid and not square:
            raise ValueError(
                f"The temporal shift was added for maps of {self.layout.grid[0]} x {self.layout.grid[1]} patches"
                f"{' and square ones' if self.any_square else ''}; images of {shape[2]} x {shape[3]} pixels have "
                f"{grid[0]} x "
                f"{grid[1]}. Remove the shift and add it again with image_size=({shape[2]}, {shape[3]})."
            )


def patch_grid(image_size: Sequence[int], patch_size: Sequence[int], padded: bool) -> tuple[int, int]:
    """Rows and columns of patches; Swin pads an image to whole patches, the others cut off the rest."""
    rows, columns = (
        -(-side // patch) if padded else side // patch for side, patch in zip(image_size, patch_size, strict=True)
    )
    return rows, columns


def check_at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def find_image_transformer(model: nn.Module) -> nn.Module:
    """The one base model of the table in `model`, which may be itself."""
    return find_one_in_table(model, IMAGE_TRANSFORMERS, "A temporal shift")


def row_of(base: nn.Module) -> ImageTransformer:
    """What the table says of a base model that `find_image_transformer` found."""
    return IMAGE_TRANSFORMERS[find_in_table(base, IMAGE_TRANSFORMERS)]


def find_layers(base: nn.Module, family: ImageTransformer) -> list[nn.Module]:
    """The layers of the base model, in order, with every part that a hook may ask for."""
    parts = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", family.mlp_norm)
    layers = [module for module in base.modules() if find_in_table(module, {family.layer: None})]
    for layer in layers:
        names = {name for name, _ in layer.named_modules()}
        missing = [part for part in parts if part not in names]
        missing += [f"attention.{name}" for name in ("head_dim", "config") if not hasattr(layer.attention, name)]
        if missing:
            raise ValueError(
                f"{family.layer} of this {type(base).__name__} lacks {', '.join(missing)}: a layout that is not known "
                "here "
                "(known: Transformers 5.20 to 5.23)."
            )
    if not layers:
        raise ValueError(f"This {type(base).__name__} has no {family.layer}, so that there is nothing to shift.")
    return layers


def check_attention_implementation(base: nn.Module, family: ImageTransformer) -> None:
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


def check_given_for_another_shift(shift: str, **settings: tuple[Any, list[str]]) -> None:
    for name, (value, meant_for) in settings.items():
        if value is not None and shift not in meant_for:
            raise ValueError(f"{name} is a setting of shift={' or '.join(map(repr, meant_for))}, not of {shift!r}.")


def check_shift_settings(
    shift: str,
    shift_div: int | None,
    pattern: str | Sequence[Sequence[int]] | None,
    segment_length: int | None,
    temporal_window: int | None,
) -> None:
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


def count_heads(attention: nn.Module) -> int:
    return attention.num_heads if hasattr(attention, "num_heads") else attention.num_attention_heads


def check_something_moves(
    shift: str, shift_div: int, window: int, number: int, attention: nn.Module, width: int
) -> None:
    """The channels that `shift_div` divides give each moving group one at least; the layer has `width` of them."""
    heads = count_heads(attention)
    inner = heads * attention.head_dim
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


class ShiftPlan(NamedTuple):
    """A shift as it will be plugged into a base model. Made by `plan_shift`, which checks everything."""

    shift: str
    num_frames: int
    numbers: list[int]  # of the layers that shift
    layers: list[nn.Module]  # all of them
    layouts: list[FrameLayout]  # of each layer
    check: ClipCheck
    pattern: Pattern | None  # of the patch shift
    shift_div: int | None  # of the others
    segment_length: int | None
    window: int

    def move(self, number: int) -> Move:
        """The shift of a layer on the batch of its attention; of the patch shift, the way there."""
        layout = self.layouts[number]
        if self.pattern is not None:
            return partial(shift_patches, layout=layout, pattern=self.pattern, inverse=False)
        heads = count_heads(self.layers[number].attention)
        settings = {
            "channel": {"num_heads": heads},
            "mixing": {"segment_length": self.segment_length, "window": self.window},
            "periodic": {"num_heads": heads},
            "plain": {"num_heads": 1},
            "token": {},
        }[self.shift]
        move = partial(SHIFTS[self.shift].function, shift_div=self.shift_div, **settings)
        return partial(shift_in_time, layout=layout, move=move)

    def moves_whole_heads(self, number: int) -> bool:
        """Of the mixing: whether no head comes in part from another frame."""
        attention = self.layers[number].attention
        moving = count_heads(attention) * attention.head_dim // self.shift_div // self.window
        return moving % attention.head_dim == 0


def plan_shift(
    base: nn.Module,
    num_frames: int,
    shift: str,
    shift_div: int | None,
    pattern: str | Sequence[Sequence[int]] | None,
    layers: Iterable[int] | None,
    segment_length: int | None,
    temporal_window: int | None,
    image_size: int | Sequence[int] | None,
) -> ShiftPlan:
    """Fill in the defaults and check all that `add_temporal_shift` promises to check; the model stays untouched."""
    family = row_of(base)
    check_at_least("num_frames", num_frames, 1)
    check_shift_settings(shift, shift_div, pattern, segment_length, temporal_window)
    if shift == "token" and not family.prefix_tokens:
        raise ValueError(f"shift='token' moves the class token, and a {type(base).__name__} has none.")
    all_layers = find_layers(base, family)
    numbers = check_layer_numbers(layers, len(all_layers))
    check_attention_implementation(base, family)
    window = 1 if temporal_window is None else temporal_window
    offsets = None
    if shift == "patch":
        offsets = resolve_patch_shift_pattern("C" if pattern is None else pattern)
    else:
        shift_div = SHIFTS[shift].shift_div if shift_div is None else shift_div
        for number in numbers:
            attention = all_layers[number].attention
            width = count_heads(attention) * attention.head_dim if family.windowed else base.config.hidden_size
            check_something_moves(shift, shift_div, window, number, attention, width)
    layouts = layouts_of_layers(base, family, num_frames, image_size)
    check = ClipCheck(
        num_frames,
        pair(base.config.patch_size),
        layouts[0] if family.windowed or shift == "patch" else None,
        any_square=image_size is None and not family.windowed,
    )
    return ShiftPlan(shift, num_frames, numbers, all_layers, layouts, check, offsets, shift_div, segment_length, window)


def plug_layer(plug: Plug, plan: ShiftPlan, number: int, mlp_norm: str) -> None:
    """Let one layer shift. `mlp_norm`: where its norm ahead of the MLP is."""
    layer, move = plan.layers[number], plan.move(number)
    attention = layer.attention
    reads_moved = partial(replace_hidden_states, move)
    if plan.shift == "mixing":
        whole_heads = plan.moves_whole_heads(number)
        if not whole_heads and "position_embeddings" in inspect.signature(type(attention).forward).parameters:
            plug.before(attention, carry_rotation, with_kwargs=True)
        plug_into_attention(plug, attention, KeyValueShift(move, whole_heads))
    elif plan.shift in ("periodic", "plain"):
        plug_into_attention(plug, attention, AttendedShift(move))
    elif plan.shift == "token":
        plug.before(layer, reads_moved, with_kwargs=True)
        plug.follow(layer, mlp_norm, partial(shift_class_token_in_place, move), before=True)
    else:
        plug.before(attention, reads_moved, with_kwargs=True)
        if plan.shift == "patch":
            move_back = partial(shift_patches, layout=plan.layouts[number], pattern=plan.pattern, inverse=True)
            plug_into_attention(plug, attention, AttendedShift(move_back))


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
    """Let the layers of a live image transformer exchange features between the frames of a clip.

    The model then takes (batch * num_frames, channels, height, width), the frames of each clip one after the other, and
    gives its outputs per frame. Nothing is learned anew: parameters, state dict and config stay as they are. On a clip
    of equal frames "patch" and "channel" leave the features of the image model; the others read zeros beyond the ends
    of a clip. With "token" each of `hidden_states` but the last is what its layer reads, after the shift.

    Args:
        model: ViTModel, DeiTModel, Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel, SwinModel, BeitModel of
            Transformers, or a model around one of them such as an image classifier.
        num_frames: frames of a clip.
        shift: "patch" or "channel" (TPS), "mixing" (XViT), "periodic" or "plain" (LAPS), "token" (TokShift: the class
            token, so not in Swin). The head of this file tells where each acts.
        shift_div: each of the two moving groups has 1/shift_div of the channels. None: the method's own (channel 8, the
            others 4).
        pattern: of the patch shift: "A", "B", "C" (None), "D" or a matrix of frame offsets; tiled from the corner of
            the map of patches, in Swin from the corner of each window.
        layers: numbers of the layers that shift, in Swin counted through all stages; None: all.
        segment_length: of the mixing: frames that exchange (XViT); None: the whole clip.
        temporal_window: of the mixing: how many frames away a neighbour may be (XViT); None: 1.
        image_size: height and width of the images, or one number for both. Asked for only where the shift depends on
            where the patches lie. None: that of the model's config; outside Swin also square images of any size.

    Returns:
        The model, changed in place.

    Raises:
        ValueError: for a model that is not in the list or is plugged already, settings out of range or meant for
            another shift, layers that do not exist, an attention implementation that cannot work. The model is
            untouched then.
            Later, at a call: for a batch that is no multiple of `num_frames`, and images that the shift was not added
                for.
    """
    with PLUG_LOCK:
        base = find_image_transformer(model)
        if hasattr(base, HANDLES):
            raise ValueError("The model has a temporal shift already: remove_temporal_shift(model) comes first.")
        plan = plan_shift(
            base, num_frames, shift, shift_div, pattern, layers, segment_length, temporal_window, image_size
        )
        plug = Plug()
        plug.before(base, plan.check, with_kwargs=True)
        for number in plan.numbers:
            plug_layer(plug, plan, number, row_of(base).mlp_norm)
        setattr(base, HANDLES, plug)
    return model


def remove_temporal_shift(model: nn.Module) -> nn.Module:
    """Undo `add_temporal_shift`: the model computes again what it computed before, to the bit.

    Returns:
        The model, changed in place.

    Raises:
        ValueError: if no temporal shift was added.
    """
    with PLUG_LOCK:
        base = find_image_transformer(model)
        if not hasattr(base, HANDLES):
            raise ValueError(f"This {type(base).__name__} has no temporal shift to remove.")
        getattr(base, HANDLES).unplug()
        delattr(base, HANDLES)
    return model


__all__ = ["add_temporal_shift", "remove_temporal_shift"]
