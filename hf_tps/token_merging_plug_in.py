# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Token merging for a video transformer that is already there: hooks on its sub-modules, and out again.

    model = AutoModelForVideoClassification.from_pretrained("MCG-NJU/videomae-base-finetuned-kinetics")
    add_token_merging(model)  # about 38 % fewer multiply-accumulates
    logits = model(clips).logits
    remove_token_merging(model)

Tokens are merged AFTER a block, by a hook on it; what they are compared by are the keys of that block's attention, before
rotary embedding, from a hook on their projection. The blocks that follow read fewer tokens:

    | model       | topology | size in attention | what else is told                                              |
    |-------------|----------|-------------------|----------------------------------------------------------------|
    | VideoMAE    | "match"  | 0                 | the mean over tokens ahead of `fc_norm` is weighted by size     |
    | ViViT       | "match"  | 1                 | the class token has size 1 and never merges                     |
    | TimeSformer | "tube"   | 1, in space       | later blocks read a map of one column                           |
    | V-JEPA 2    | "match"  | 0; pooler 1       | later blocks rotate by the centroids of the tokens              |
    | XViT        | "tube"   | 1                 | frames exchange keys and values place by place                  |
    | LAPS (ViT)  | "tube"   | 1                 | frames exchange channels place by place                         |

"match" merges inside frames and between them; "tube" gives all frames the same merges, so that token i stays one place of
the clip wherever a model relates frames place by place. TPS and LAPS on Visformer cannot merge: windows and convolutions
need whole maps.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .layers import eager_attention_forward, pair
from .leap_attention import leap_order
from .token_merging import (
    BASELINES,
    MERGE_METHODS,
    TUBE_METHODS,
    MergeBudget,
    MergeSettings,
    MergeState,
    add_size_channel,
    constant_budgets,
    merge_budgets,
    merge_tokens,
    metric_from_keys,
    motion_features,
    pool_budget,
    size_weighted_mean,
    start_merging,
)

MERGE_POINT = "after_block"
# The cut that STTM reports at similar accuracy; `keep_ratio=None` aims at it.
DEFAULT_CUT = 0.38
HANDLES = "_token_merging"  # on the base model while it is plugged
SIZE_AWARE = "size_aware_"  # ahead of the name of an attention implementation in Transformers' registry

Grid = tuple[int, int, int]  # frames (or tubelets), rows, columns of the tokens


# --- what the hooks must know of a family -----------------------------------------------------------------------------


class VideoTransformer:
    """A family of video transformers: where its parts are, how its tokens lie, what a block costs."""

    model_type: str
    blocks: str  # path to the list of blocks
    attention: str  # path in a block to the module that computes the attention
    key_projection: str  # path in a block
    fused_projection = False  # queries, keys and values in one product
    prefix_tokens = 0  # class tokens ahead of the others
    topology = "match"
    size_weight = 0.0  # alpha: attention logits get alpha * log(size of the key)
    methods = tuple(method for method in MERGE_METHODS if method not in TUBE_METHODS)

    def check_config(self, config):
        """Raise a ValueError for a variant whose tokens cannot merge."""

    def tubelet(self, config) -> Grid:
        """Frames, rows and columns of pixels that make a token."""
        return (config.tubelet_size, *pair(config.patch_size))

    def clip_size(self, config) -> Grid:
        """Frames, height and width of the clips that the config is for."""
        return (config.num_frames, *pair(config.image_size))

    def grid(self, config, clip_size: Sequence[int]) -> Grid:
        frames, rows, columns = (size // step for size, step in zip(clip_size, self.tubelet(config), strict=True))
        return frames, rows, columns

    def own_grid(self, config) -> Grid:
        """The tokens of the clips that the config is for."""
        return self.grid(config, self.clip_size(config))

    def check_call(self, config, grid: Grid, arguments: dict[str, Any]):
        """Raise a ValueError for what a call asks for that merged tokens cannot give."""

    def require_own_grid(self, config, grid: Grid, axes: slice = slice(None)):
        own = self.own_grid(config)
        if grid[axes] != own[axes]:
            raise ValueError(
                f"This {config.model_type} takes clips of {own} tokens over time, rows and columns, as its config says; these "
                f"clips have {grid}."
            )

    def split(self, hidden_states: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of a block into its class tokens and (batch, L, channels), frame-major."""
        return hidden_states[:, : self.prefix_tokens], hidden_states[:, self.prefix_tokens :]

    def join(self, prefix: torch.Tensor, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.cat((prefix, tokens), dim=1) if self.prefix_tokens else tokens

    def key_tokens(self, attention: nn.Module, keys: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Anything laid out as the keys of a block, to (batch, L, channels), frame-major."""
        return self.split(keys, grid)[1]

    def key_sizes(self, state: MergeState, key: torch.Tensor) -> torch.Tensor:
        """Sizes of the keys (groups, heads, keys, head_dim) that attention sees, (groups, keys)."""
        return nn.functional.pad(state.sizes, (self.prefix_tokens, 0), value=1.0)

    def plug_attention(self, merging: "TokenMerging", block: nn.Module, stage: int):
        """Let the attention of a block behind `stage` merges see the sizes of the tokens."""
        merging.replace_attribute(
            block.get_submodule(self.attention), "config", partial(SizeAwareConfig, merging=merging, stage=stage)
        )

    def plug_block(self, merging: "TokenMerging", block: nn.Module, stage: int):
        """What else a block behind `stage` merges must be told."""

    def plug_head(self, merging: "TokenMerging", model: nn.Module):
        """What must be told to the modules that read the merged tokens."""

    def embedding_macs(self, config) -> int:
        tokens = math.prod(self.own_grid(config))
        channels = getattr(config, "num_channels", None) or config.in_chans
        return tokens * math.prod(self.tubelet(config)) * channels * config.hidden_size

    def block_macs(self, config, frames: int, places: int) -> int:
        """Multiply-accumulates of a block on `frames` times `places` tokens, without the size channel."""
        tokens, channels = self.prefix_tokens + frames * places, config.hidden_size
        hidden = intermediate_size(config)
        return tokens * channels * (4 * channels + 2 * hidden) + 2 * tokens**2 * channels


class VideoMAE(VideoTransformer):
    model_type = "videomae"
    blocks = "encoder.layer"
    attention = "attention.attention"
    key_projection = "attention.attention.key"

    def check_call(self, config, grid: Grid, arguments: dict[str, Any]):
        if arguments.get("bool_masked_pos") is not None:
            raise ValueError(
                "Masked clips (bool_masked_pos) have no grid of tokens to merge: remove_token_merging(model) before "
                "pre-training on masked clips."
            )
        self.require_own_grid(config, grid)

    def plug_head(self, merging: "TokenMerging", model: nn.Module):
        if type(model).__name__ == "VideoMAEForVideoClassification" and model.fc_norm is not None:
            merging.remember_last_hidden_state = True
            merging.handles.append(model.fc_norm.register_forward_pre_hook(merging.weigh_mean))


class ViViT(VideoTransformer):
    model_type = "vivit"
    blocks = "layers"
    attention = "attention"
    key_projection = "attention.k_proj"
    prefix_tokens = 1
    size_weight = 1.0

    def tubelet(self, config) -> Grid:
        frames, rows, columns = config.tubelet_size
        return frames, rows, columns

    def check_call(self, config, grid: Grid, arguments: dict[str, Any]):
        if arguments.get("attention_mask") is not None:
            raise ValueError(
                "An attention_mask has one entry for each token of the clip and does not fit merged ones: "
                "remove_token_merging(model) to use one."
            )
        # Also with interpolate_pos_encoding, which takes positions over time and space for one square map.
        self.require_own_grid(config, grid)


class VJEPA2(VideoTransformer):
    model_type = "vjepa2"
    blocks = "encoder.layer"
    attention = "attention"
    key_projection = "attention.key"

    def clip_size(self, config) -> Grid:
        return config.frames_per_clip, config.crop_size, config.crop_size

    def grid(self, config, clip_size: Sequence[int]) -> Grid:
        # A clip shorter than a tubelet is repeated by the model.
        return super().grid(config, (max(clip_size[0], config.tubelet_size), *clip_size[1:]))

    def check_call(self, config, grid: Grid, arguments: dict[str, Any]):
        if not arguments.get("skip_predictor"):
            raise ValueError(
                "The predictor of V-JEPA 2 counts the tokens of a whole clip, merged ones have no place there: call the "
                "model with skip_predictor=True, as its classifier does."
            )
        # It numbers places by its config, whatever the clip.
        self.require_own_grid(config, grid, slice(1, None))

    def plug_block(self, merging: "TokenMerging", block: nn.Module, stage: int):
        attention = block.get_submodule(self.attention)
        untouched = attention.get_position_ids

        def get_position_ids(hidden_states: torch.Tensor, masks: torch.Tensor | None = None) -> tuple:
            if not merging.has_merged(stage):
                return untouched(hidden_states, masks)
            positions = merging.state_at(stage, hidden_states.device).positions
            # (batch, 1, L) for each axis; in half precision as exact as the model's own rotation
            return tuple(positions.to(hidden_states.dtype)[:, None].unbind(-1))

        merging.replace_attribute(attention, "get_position_ids", lambda _: get_position_ids)

    def plug_head(self, merging: "TokenMerging", model: nn.Module):
        # The pooler was trained on all tokens: to it, a merged one must look like those that it stands for.
        poolers = ("VJEPA2PoolerSelfAttention", "VJEPA2PoolerCrossAttention")
        for module in model.modules():
            if type(module).__name__ in poolers:
                view = partial(SizeAwareConfig, merging=merging, stage=merging.last_stage, size_weight=1.0)
                merging.replace_attribute(module, "config", view)


class FrameByFrame(VideoTransformer):
    """Frames in the batch, (batch * frames, 1 + places, channels); frames are related place by place."""

    prefix_tokens = 1
    topology = "tube"
    size_weight = 1.0
    methods = TUBE_METHODS
    attention = "attention"
    key_projection = "attention.qkv"
    fused_projection = True

    def tubelet(self, config) -> Grid:
        return (1, *pair(config.patch_size))

    def split(self, hidden_states: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden_states[:, :1], hidden_states[:, 1:].unflatten(0, (-1, grid[0])).flatten(1, 2)

    def join(self, prefix: torch.Tensor, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.cat((prefix, tokens.unflatten(1, (grid[0], -1)).flatten(0, 1)), dim=1)

    def key_sizes(self, state: MergeState, key: torch.Tensor) -> torch.Tensor:
        # In a tube a place has the same size in all frames; a group of the kernel has one frame's keys, or several's.
        frame = super().key_sizes(state._replace(sizes=state.sizes.unflatten(1, (state.groups, -1))[:, 0]), key)
        frames_in_group = key.shape[2] // frame.shape[1]
        return frame.repeat(1, frames_in_group).repeat_interleave(key.shape[0] // frame.shape[0], dim=0)

    def block_macs(self, config, frames: int, places: int) -> int:
        tokens, channels = frames * (1 + places), config.hidden_size
        attended = self.frames_attended(config) * (1 + places)
        return tokens * channels * (4 * channels + 2 * intermediate_size(config) + 2 * attended)

    def frames_attended(self, config) -> int:
        return 1


class TimeSformer(FrameByFrame):
    """The hidden states are (batch, 1 + places * frames, channels), place-major; keys of its spatial attention by frames."""

    model_type = "timesformer"
    blocks = "encoder.layer"
    attention = "attention.attention"
    key_projection = "attention.attention.qkv"

    def check_config(self, config):
        if config.attention_type != "divided_space_time":
            raise ValueError(
                f"Token merging knows TimeSformer's attention_type='divided_space_time', not {config.attention_type!r}."
            )

    def check_call(self, config, grid: Grid, arguments: dict[str, Any]):
        self.require_own_grid(config, grid)

    def split(self, hidden_states: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = hidden_states[:, 1:].unflatten(1, (-1, grid[0])).transpose(1, 2)
        return hidden_states[:, :1], tokens.flatten(1, 2)

    def join(self, prefix: torch.Tensor, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.cat((prefix, tokens.unflatten(1, (grid[0], -1)).transpose(1, 2).flatten(1, 2)), dim=1)

    def key_tokens(self, attention: nn.Module, keys: torch.Tensor, grid: Grid) -> torch.Tensor:
        return FrameByFrame.split(self, keys, grid)[1]

    def plug_attention(self, merging: "TokenMerging", block: nn.Module, stage: int):
        # Its attention is written out and ends in a dropout of the weights: there they are weighed by size.
        weigh = partial(merging.weigh_probabilities, stage)
        merging.handles.append(block.get_submodule(self.attention).attn_drop.register_forward_pre_hook(weigh))

    def plug_block(self, merging: "TokenMerging", block: nn.Module, stage: int):
        # The block divides its tokens into columns by the config's sizes: one column takes any number of them.
        merging.replace_attribute(block, "config", lambda config: View(config, image_size=config.patch_size))

    def block_macs(self, config, frames: int, places: int) -> int:
        channels = config.hidden_size
        in_time = frames * places * channels * (5 * channels + 2 * frames)
        in_space = frames * (1 + places) * channels * (4 * channels + 2 * (1 + places))
        return in_time + in_space + (1 + frames * places) * 2 * channels * config.intermediate_size


class XViT(FrameByFrame):
    model_type = "xvit"
    blocks = "blocks"

    def check_config(self, config):
        if config.summary_token:
            raise ValueError(
                "Token merging needs an XViT with summary_token=False: the summary is a plain mean over patches."
            )


class LAPS(FrameByFrame):
    model_type = "laps"
    blocks = "backbone.blocks"

    def check_config(self, config):
        if config.backbone != "vit":
            raise ValueError(
                f"Tokens of LAPS with backbone={config.backbone!r} cannot merge: its convolutions need whole maps. "
                "backbone='vit' can."
            )

    def key_tokens(self, attention: nn.Module, keys: torch.Tensor, grid: Grid) -> torch.Tensor:
        # Its attention sees groups of frames: pairs in the order of their leaps, single frames, or the whole clip.
        in_group = 2 if attention.level is not None else (grid[0] if attention.joint else 1)
        frames = keys.unflatten(1, (in_group, -1)).flatten(0, 1)
        if attention.level is not None:
            order, inverse = leap_order(grid[0], attention.level, keys.device)
            frames = frames.unflatten(0, (-1, order.shape[0])).index_select(1, inverse).flatten(0, 1)
        return self.split(frames, grid)[1]

    def frames_attended(self, config) -> int:
        return {"frame": 1, "leap": 2}.get(config.attention_scope, config.num_frames)


VIDEO_TRANSFORMERS: dict[str, VideoTransformer] = {
    "VideoMAEModel": VideoMAE(),
    "VivitModel": ViViT(),
    "TimesformerModel": TimeSformer(),
    "VJEPA2Model": VJEPA2(),
    "XViTModel": XViT(),
    "LAPSModel": LAPS(),
}


def family_of_config(config) -> VideoTransformer:
    """
    Raises:
        ValueError: for a backbone that is not in the table, or a variant of one that cannot merge.
    """
    for family in VIDEO_TRANSFORMERS.values():
        if family.model_type == config.model_type:
            family.check_config(config)
            return family
    why = " Its windows need whole maps of patches." if config.model_type == "tps" else ""
    known = ", ".join(family.model_type for family in VIDEO_TRANSFORMERS.values())
    raise ValueError(f"Tokens of a {config.model_type!r} model cannot be merged here.{why} Known are: {known}.")


def intermediate_size(config) -> int:
    size = getattr(config, "intermediate_size", None)
    return int(config.mlp_ratio * config.hidden_size) if size is None else size


# --- the plan: everything that is decided before the first clip -------------------------------------------------------


class MergePlan(NamedTuple):
    """How a model merges. Made by `plan_merging`."""

    method: str
    merge_layers: tuple[int, ...]
    keep_ratio: float | None
    merges_per_stage: int | None
    temporal_share: float
    size_weight: float
    pool_windows: int | None
    settings: MergeSettings

    def budgets(self, grid: Grid) -> tuple[MergeBudget, ...]:
        """
        What each stage does to a clip of this grid.

        Raises:
            ValueError: if a stage cannot do so many merges.
        """
        tokens, stages = math.prod(grid), len(self.merge_layers)
        if self.method == "pool":
            return (pool_budget(grid, self.settings.meta_grid, self.pool_windows),)
        if self.merges_per_stage is not None:
            return constant_budgets(tokens, self.merges_per_stage, stages)
        return merge_budgets(
            tokens, grid[0], self.keep_ratio, stages, self.temporal_share, pair_groups=self.method not in TUBE_METHODS
        )


def quarter_points(num_layers: int) -> tuple[int, ...]:
    """After a quarter, a half and three quarters of the blocks: (3, 6, 9) of 12."""
    return tuple(sorted({max(num_layers * quarter // 4, 1) for quarter in (1, 2, 3)}))


def plan_merging(
    config,
    *,
    merge_layers: Sequence[int] | None = None,
    keep_ratio: float | None = None,
    merge_point: str = MERGE_POINT,
    method: str | None = None,
    temporal_share: float = 0.5,
    merges_per_stage: int | None = None,
    size_weight: float | None = None,
    pool_windows: int | None = None,
    top_q: int = 1,
    temperature: float = 0.05,
    meta_weight: float = 0.0,
    meta_grid: Sequence[int] = (2, 4, 4),
    meta_rounds: int = 2,
    meta_temperature: float = 0.1,
) -> MergePlan:
    """
    Fill in what a family has as default, and check everything against the config of its backbone.

    Arguments as for `add_token_merging`.

    Raises:
        ValueError: for a backbone that cannot merge, settings out of range, layers that do not exist, more merges than a
            stage can do on the clips that the config is for.
    """
    family = family_of_config(config)
    if merge_point != MERGE_POINT:
        raise ValueError(f"merge_point is {MERGE_POINT!r}, the one place where a hook can merge; got {merge_point!r}.")
    method = family.topology if method is None else method
    if method not in family.methods:
        raise ValueError(
            f"method={method!r} cannot merge the tokens of a {config.model_type}: give one of {family.methods}."
        )
    layers = config.num_hidden_layers
    merge_layers = quarter_points(layers) if merge_layers is None else tuple(merge_layers)
    if not merge_layers or list(merge_layers) != sorted(set(merge_layers)):
        raise ValueError(f"merge_layers are different numbers in rising order; got {merge_layers}.")
    outside = [layer for layer in merge_layers if not isinstance(layer, int) or not 1 <= layer <= layers]
    if outside:
        raise ValueError(
            f"merge_layers counts the blocks that come before each merge, from 1 to {layers} here; got {outside}."
        )
    if method == "pool":
        if len(merge_layers) != 1:
            raise ValueError(f"method='pool' merges once: give one merge layer, not {merge_layers}.")
        if keep_ratio is not None or pool_windows is None:
            raise ValueError(
                "method='pool' keeps pool_windows * (cells of meta_grid) tokens: give pool_windows, and no keep_ratio."
            )
    elif pool_windows is not None:
        raise ValueError(f"pool_windows is a setting of method='pool', not of {method!r}.")
    without_frames = tuple(baseline for baseline in BASELINES if baseline not in TUBE_METHODS)
    if merges_per_stage is not None and (method not in without_frames or keep_ratio is not None):
        raise ValueError(f"merges_per_stage is for the methods {without_frames}, in place of keep_ratio.")
    if keep_ratio is not None and not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio is the share of tokens that stay at each stage, in (0, 1]; got {keep_ratio}.")
    if not 0 <= temporal_share <= 1:
        raise ValueError(f"temporal_share is the share of the merges done over time, in [0, 1]; got {temporal_share}.")
    if not isinstance(top_q, int) or top_q < 1:
        raise ValueError(f"top_q is the number of receivers of a moving token, at least 1; got {top_q!r}.")
    for name, value in (("temperature", temperature), ("meta_temperature", meta_temperature)):
        if value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}.")
    if meta_rounds < 0:
        raise ValueError(f"meta_rounds must be 0 or more, got {meta_rounds}.")
    size_weight = family.size_weight if size_weight is None else size_weight
    settings = MergeSettings(top_q, temperature, meta_weight, tuple(meta_grid), meta_rounds, meta_temperature)
    plan = MergePlan(
        method, merge_layers, keep_ratio, merges_per_stage, temporal_share, size_weight, pool_windows, settings
    )
    if keep_ratio is None and method != "pool" and merges_per_stage is None:
        plan = plan._replace(keep_ratio=keep_ratio_for_cut(config, plan))
    grid = family.own_grid(config)
    # Also for meta tokens that only steer: their cells must not be finer than the tokens.
    if meta_weight and method != "pool":
        pool_budget(grid, settings.meta_grid, 1)
    plan.budgets(grid)
    return plan


def multiply_accumulates(config, plan: MergePlan | None = None) -> int:
    """
    Multiply-accumulates of the patch embedding and the blocks on the clips that the config is for, by formula.

    Heads, poolers, the merging itself (under 0.1 %) and the size channel are not counted.

    Args:
        plan: None: the untouched model.
    """
    family = family_of_config(config)
    grid = family.own_grid(config)
    lengths = [math.prod(grid)]
    stages: tuple[int, ...] = ()
    if plan is not None:
        stages = plan.merge_layers
        lengths += [budget.length_out for budget in plan.budgets(grid)]
    total = family.embedding_macs(config)
    for block in range(config.num_hidden_layers):
        length = lengths[stages_before(stages, block)]
        # In a tube the frames stay apart; elsewhere a block does not ask where its tokens come from.
        frames = grid[0] if family.topology == "tube" else 1
        total += family.block_macs(config, frames, length // frames)
    return total


def stages_before(merge_layers: Sequence[int], block: int) -> int:
    """How often tokens have merged before block number `block`, counted from 0."""
    return sum(layer <= block for layer in merge_layers)


def keep_ratio_for_cut(config, plan: MergePlan, cut: float = DEFAULT_CUT) -> float:
    """
    The largest keep ratio, in hundredths, that saves at least the share `cut` of the multiply-accumulates.

    VideoMAE-B on 16 x 224 x 224: 0.72.

    Raises:
        ValueError: if no keep ratio that the stages can do saves so much.
    """
    full = multiply_accumulates(config)
    for hundredths in range(99, 0, -1):
        candidate = plan._replace(keep_ratio=hundredths / 100)
        try:
            if multiply_accumulates(config, candidate) <= (1 - cut) * full:
                return hundredths / 100
        except ValueError:
            break
    raise ValueError(
        f"No keep_ratio with merge_layers={plan.merge_layers} saves {cut:.0%} of the multiply-accumulates of this "
        f"{config.model_type}: give keep_ratio, or earlier or more merge_layers."
    )


# --- what the hooks share while a model is plugged --------------------------------------------------------------------


class View:
    """An object seen through: every attribute is the target's, as it is at that moment, but for the given ones."""

    def __init__(self, target, **attributes):
        self.__dict__.update(attributes, _target=target)

    def __getattr__(self, name: str):
        # Asked only for what is not here; copying and pickling ask for special names before anything is here.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_target"], name)


class SizeAwareConfig(View):
    """The config of an attention module that looks up its kernel in it: the same kernel, told the sizes of the keys."""

    def __init__(self, target, merging: "TokenMerging", stage: int, size_weight: float | None = None):
        super().__init__(target, merging=merging, stage=stage, size_weight=size_weight)

    @property
    def _attn_implementation(self) -> str:
        implementation = self._target._attn_implementation or "eager"
        sees_sizes = self.merging.sees_sizes(self.stage, self.strength())
        return size_aware_name(implementation) if sees_sizes else implementation

    def strength(self) -> float | torch.Tensor:
        return self.merging.strength(self.stage) if self.size_weight is None else self.size_weight


def size_aware_name(implementation: str) -> str:
    """The name under which Transformers' registry has the kernel with sizes; put there if it is missing."""
    name = SIZE_AWARE + implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, partial(size_aware_attention, implementation))
    return name


def size_aware_attention(
    implementation: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    A kernel of Transformers' attention interface, its logits raised by `alpha * log(size of the key)`.

    Args:
        implementation: name of the kernel.
        module: its `config` is a `SizeAwareConfig`.
        query, key, value: (batch, heads, tokens, head_dim).
    """
    config = module.config
    sizes = config.merging.key_sizes(config.stage, key)
    inputs = add_size_channel(query, key, value, sizes, config.strength(), scaling)
    kernel = eager_attention_forward if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
    # Kernels read the name of the implementation from the module's config.
    module = View(module, config=config._target)
    attended, weights = kernel(
        module, inputs.query, inputs.key, inputs.value, attention_mask, scaling=inputs.scale, **kwargs
    )
    return attended[..., : inputs.head_dim], weights


for _implementation in ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()):
    if "paged" not in _implementation and not _implementation.startswith(SIZE_AWARE):
        size_aware_name(_implementation)


class MergeRun:
    """One forward pass: how its tokens stand before each stage and after the last."""

    def __init__(self, state: MergeState, budgets: tuple[MergeBudget, ...]):
        self.states: list[MergeState] = [state] * (len(budgets) + 1)
        self.budgets = budgets
        self.metric: torch.Tensor | None = None
        self.last_hidden_state: torch.Tensor | None = None


class TokenMerging:
    """
    What the hooks of one plugged model share.

    `run` is there from the start of a forward pass to its end; where blocks are checkpointed, until they are computed
    again in the backward pass.

    Args:
        base: the base model.
        plan: how it merges.
        learned: a module for each stage with what it has learned (`metric`, `gate`, `motion`, `size_weight`,
            `meta_weight`, each None if it has not), or None for each.
    """

    def __init__(self, base: nn.Module, plan: MergePlan, learned: Sequence[nn.Module | None]):
        self.base = base
        self.family = VIDEO_TRANSFORMERS[type(base).__name__]
        self.plan = plan
        self.learned = list(learned)
        self.last_stage = len(plan.merge_layers)
        self.run: MergeRun | None = None
        self.remember_last_hidden_state = False
        self.handles: list[Any] = []
        self.replaced: list[tuple[nn.Module, str, Any, bool]] = []

    # plugging and unplugging

    def replace_attribute(self, module: nn.Module, name: str, replacement: Callable[[Any], Any]):
        """Give an instance another attribute, made from the one it has."""
        value = getattr(module, name)
        self.replaced.append((module, name, value, name in module.__dict__))
        setattr(module, name, replacement(value))

    def plug(self, model: nn.Module):
        base, family = self.base, self.family
        self.handles.append(base.register_forward_pre_hook(self.start, with_kwargs=True))
        blocks = base.get_submodule(family.blocks)
        for stage, layer in enumerate(self.plan.merge_layers):
            block = blocks[layer - 1]
            projection = block.get_submodule(family.key_projection)
            self.handles.append(projection.register_forward_hook(partial(self.keep_metric, stage, block)))
            # Ahead of other hooks, which are to see what the next block sees.
            self.handles.append(block.register_forward_hook(partial(self.merge, stage), prepend=True))
        for number, block in enumerate(blocks):
            if stage := stages_before(self.plan.merge_layers, number):
                family.plug_attention(self, block, stage)
                family.plug_block(self, block, stage)
        family.plug_head(self, model)
        self.handles.append(base.register_forward_hook(self.finish_base))
        self.handles.append(model.register_forward_hook(self.finish, always_call=True))
        setattr(base, HANDLES, self)

    def unplug(self):
        for handle in self.handles:
            handle.remove()
        for module, name, value, own in reversed(self.replaced):
            if own:
                setattr(module, name, value)
            else:
                delattr(module, name)
        delattr(self.base, HANDLES)

    # what others ask

    def state_at(self, stage: int, device: torch.device) -> MergeState:
        """The tokens behind `stage` merges; `tokens` is empty."""
        state = self.run.states[stage]
        if state.sizes.device == device:
            return state
        return MergeState(*(part.to(device) if isinstance(part, torch.Tensor) else part for part in state))

    def has_merged(self, stage: int) -> bool:
        budgets = () if self.run is None else self.run.budgets[:stage]
        return any(budget.length_out < budget.length_in for budget in budgets)

    def strength(self, stage: int) -> float | torch.Tensor:
        """alpha of the blocks behind `stage` merges."""
        learned = self.learned[stage - 1]
        return self.plan.size_weight if learned is None or learned.size_weight is None else learned.size_weight

    def sees_sizes(self, stage: int, strength: float | torch.Tensor) -> bool:
        """Whether sizes change the attention behind `stage` merges; a strength that is learned always may."""
        return self.has_merged(stage) and (isinstance(strength, torch.Tensor) or strength != 0)

    def key_sizes(self, stage: int, key: torch.Tensor) -> torch.Tensor:
        return self.family.key_sizes(self.state_at(stage, key.device), key)

    # hooks

    def start(self, module: nn.Module, args: tuple, kwargs: dict):
        """Of the base model, before it."""
        names = list(signature_of(type(module)))
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        clip = arguments.get(module.main_input_name)
        if clip is None:
            return  # the model has its own word for that
        if clip.ndim != 5:
            raise ValueError(
                f"{type(module).__name__} takes (batch, num_frames, channels, height, width); got {tuple(clip.shape)}."
            )
        frames, _, height, width = clip.shape[1:]
        grid = self.family.grid(module.config, (frames, height, width))
        self.family.check_call(module.config, grid, arguments)
        empty = clip.new_empty((clip.shape[0], math.prod(grid), 0))
        self.run = MergeRun(start_merging(empty, grid), self.plan.budgets(grid))

    def keep_metric(self, stage: int, block: nn.Module, module: nn.Module, args: tuple, output: torch.Tensor):
        """Of the key projection: what the tokens of this block are compared by."""
        run, learned = self.run, self.learned[stage]
        if run is None or run.budgets[stage].length_out == run.budgets[stage].length_in:
            return
        if learned is not None and learned.metric is not None:
            metric = learned.metric(args[0])
        else:
            # A hard choice has no gradient.
            keys = output.detach() if self.plan.settings.top_q == 1 else output
            keys = keys.chunk(3, dim=-1)[1] if self.family.fused_projection else keys
            metric = metric_from_keys(keys.unflatten(-1, (self.base.config.num_attention_heads, -1)).transpose(1, 2))
        attention = block.get_submodule(self.family.attention)
        run.metric = self.family.key_tokens(attention, metric, run.states[stage].grid)

    def merge(self, stage: int, module: nn.Module, args: tuple, output):
        """Of a block, after it."""
        run = self.run
        if run is None:
            return None
        state, budget = run.states[stage], run.budgets[stage]
        if budget.length_out == budget.length_in:
            run.states[stage + 1] = state._replace(groups=budget.groups_out)
            return None
        hidden_states = output[0] if isinstance(output, tuple) else output
        prefix, tokens = self.family.split(hidden_states, state.grid)
        state = self.state_at(stage, tokens.device)._replace(tokens=tokens)
        learned, settings, gate = self.learned[stage], self.plan.settings, None
        if learned is not None and learned.meta_weight is not None:
            settings = settings._replace(meta_weight=learned.meta_weight)
        if learned is not None and learned.gate is not None:
            gate = learned.gate(tokens).squeeze(-1)
        metric, run.metric = run.metric, None
        state = merge_tokens(state, metric, budget, settings, self.plan.method, gate)
        merged = state.tokens
        if learned is not None and learned.motion is not None:
            merged = merged + learned.motion(motion_features(state).to(merged.dtype))
        run.states[stage + 1] = state._replace(tokens=merged[..., :0].detach())
        merged = self.family.join(prefix, merged, state.grid)
        self.keep_run_for_backward(merged)
        return (merged, *output[1:]) if isinstance(output, tuple) else merged

    def keep_run_for_backward(self, hidden_states: torch.Tensor):
        """Checkpointed blocks are computed again in the backward pass, after other forward passes maybe: with this run."""
        if self.checkpoints() and hidden_states.requires_grad:
            hidden_states.register_hook(partial(self.return_to_run, self.run))

    def checkpoints(self) -> bool:
        blocks = self.base.get_submodule(self.family.blocks)
        return self.base.training and getattr(blocks[0], "gradient_checkpointing", False)

    def return_to_run(self, run: MergeRun, gradient: torch.Tensor):
        self.run = run

    def finish_base(self, module: nn.Module, args: tuple, output):
        """Of the base model, after it."""
        if self.run is None:
            return
        last = output[0]
        self.keep_run_for_backward(last)
        if self.remember_last_hidden_state:
            self.run.last_hidden_state = last

    def finish(self, module: nn.Module, args: tuple, output):
        """Of the model that was plugged, after everything: also after an error."""
        if self.run is not None and output is not None:
            # A head may be checkpointed as well.
            answers = (output,) if isinstance(output, torch.Tensor) else output
            for answer in answers.values() if isinstance(answers, dict) else answers:
                if isinstance(answer, torch.Tensor):
                    self.keep_run_for_backward(answer)
        self.run = None

    def weigh_mean(self, module: nn.Module, args: tuple) -> tuple | None:
        """Before the norm of a mean over tokens: the mean over the original tokens instead."""
        if not self.has_merged(self.last_stage):
            return None
        last = self.run.last_hidden_state
        return (size_weighted_mean(last, self.state_at(self.last_stage, last.device).sizes), *args[1:])

    def weigh_probabilities(self, stage: int, module: nn.Module, args: tuple) -> tuple | None:
        """Before the dropout of attention weights (groups, heads, queries, keys): as if each key stood there `size` times."""
        strength = self.strength(stage)
        if not self.sees_sizes(stage, strength):
            return None
        probabilities = args[0]
        # key_sizes reads the number of groups and keys from the shape of keys
        sizes = self.key_sizes(stage, probabilities.transpose(-1, -2))
        weighed = probabilities * (sizes**strength)[:, None, None]
        return (weighed / weighed.sum(dim=-1, keepdim=True)).to(probabilities.dtype), *args[1:]


def signature_of(model_class: type) -> tuple[str, ...]:
    """Names of the arguments of `forward`, without self."""
    return tuple(inspect.signature(model_class.forward).parameters)[1:]


# --- the doors --------------------------------------------------------------------------------------------------------


def find_video_transformer(model: nn.Module) -> nn.Module:
    """The one base model of the table in `model`, which may be itself."""
    found = [module for module in model.modules() if type(module).__name__ in VIDEO_TRANSFORMERS]
    if len(found) == 1:
        return found[0]
    for module in model.modules():
        if type(module).__name__ == "TPSModel":
            family_of_config(module.config)  # says why
    what = f"has {len(found)} of them" if found else "is or has none of them"
    raise ValueError(
        f"Token merging can be added to {', '.join(VIDEO_TRANSFORMERS)}, or to a model around one; "
        f"{type(model).__name__} {what}."
    )


def check_layout(base: nn.Module, family: VideoTransformer):
    """The parts that the hooks ask for, by the names that Transformers 5.20 to 5.23 give them."""
    try:
        for block in base.get_submodule(family.blocks):
            block.get_submodule(family.attention)
            block.get_submodule(family.key_projection)
    except AttributeError as error:
        raise ValueError(
            f"This {type(base).__name__} has a layout that is not known here (known: Transformers 5.20 to 5.23): {error}."
        ) from error


def plug_merging(model: nn.Module, plan: MergePlan, learned: Sequence[nn.Module | None] | None = None) -> TokenMerging:
    """
    Add token merging after a plan that was made from the config of the model's backbone.

    Raises:
        ValueError: for a model that cannot merge or is plugged already. The model is untouched then.
    """
    base = find_video_transformer(model)
    family = VIDEO_TRANSFORMERS[type(base).__name__]
    if hasattr(base, HANDLES):
        raise ValueError("The model merges tokens already: remove_token_merging(model) comes first.")
    check_layout(base, family)
    merging = TokenMerging(base, plan, [None] * len(plan.merge_layers) if learned is None else learned)
    merging.plug(model)
    return merging


def add_token_merging(model: nn.Module, keep_ratio: float | None = None, **settings) -> nn.Module:
    """
    Let a video transformer merge similar tokens (STTM), without training.

    The model's outputs keep their form; `last_hidden_state`, and `hidden_states` behind a merge, have fewer tokens. Sizes
    and places of the tokens are outputs of `STTMModel`. Give the classifier rather than its base model where there is one:
    a head that takes a mean over tokens has to weigh it by size. With a keep ratio of 1 everything is as before, to the bit.

    Args:
        model: VideoMAEModel, VivitModel, TimesformerModel (divided space-time attention), VJEPA2Model of Transformers,
            XViTModel, LAPSModel (on ViT) of this package, or a model around one of them such as a classifier.
        keep_ratio: share of the tokens that each stage keeps, in (0, 1]; None: the largest, in hundredths, that saves 38 %
            of the multiply-accumulates (VideoMAE-B: 0.72).

    Keyword Args:
        merge_layers: numbers of blocks after which tokens merge, from 1 on; None: after a quarter, a half and three
            quarters of them, (3, 6, 9) of 12.
        merge_point: "after_block".
        method: "match" or "tube" (None: what fits the model, see the head of this file); "pool" (one stage, made to be
            trained); "tome", "random" and "drop", the baselines. A model with frames in its batch, and TimeSformer, has
            "tube" and its baselines "tube-random" and "tube-drop" alone.
        temporal_share: share of the merges between frames, in [0, 1]; of "match". Frames pair while their number is even.
        merges_per_stage: of "tome", "random" and "drop", in place of keep_ratio: the same number after each of `merge_layers`.
        size_weight: alpha; attention logits get alpha * log(size of the key). None: the family's.
        pool_windows, top_q, temperature, meta_weight, meta_grid, meta_rounds, meta_temperature: see `MergeSettings` and
            `merge_pool`.

    Returns:
        The model, changed in place.

    Raises:
        ValueError: for a model that cannot merge or merges already, settings out of range, layers that do not exist, more
            merges than there are tokens. The model is untouched then. Later, at a call: for what merged tokens cannot give
            (masked clips, V-JEPA 2's predictor) and clips too small for the plan.
    """
    base = find_video_transformer(model)
    plug_merging(model, plan_merging(base.config, keep_ratio=keep_ratio, **settings))
    return model


def remove_token_merging(model: nn.Module) -> nn.Module:
    """
    Undo `add_token_merging`: the model computes again what it computed before, to the bit.

    Returns:
        The model, changed in place.

    Raises:
        ValueError: if no token merging was added.
    """
    base = find_video_transformer(model)
    if not hasattr(base, HANDLES):
        raise ValueError(f"This {type(base).__name__} does not merge tokens: there is nothing to remove.")
    getattr(base, HANDLES).unplug()
    return model


__all__ = ["add_token_merging", "remove_token_merging"]
