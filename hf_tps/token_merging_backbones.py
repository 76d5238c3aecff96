# Copyright 2026 The hf_tps authors. Apache-2.0.
"""The video transformers whose tokens can merge: one class for each, with all that is known of it.

    | model       | topology | size in attention | what else is told                                              |
    |-------------|----------|-------------------|----------------------------------------------------------------|
    | VideoMAE    | "match"  | 0                 | the mean over tokens ahead of `fc_norm` is weighted by size     |
    | ViViT       | "match"  | 1                 | the class token has size 1 and never merges                     |
    | TimeSformer | "tube"   | 1, in space       | later blocks read a map of one column                           |
    | V-JEPA 2    | "match"  | 0; pooler 1       | later blocks rotate by the centroids of the tokens              |
    | VideoPrism  | "tube"   | 1, in space; head | merges in its spatial layers; sizes are masks, as logits are    |
    |             |          |                   | capped                                                          |
    | XViT        | "tube"   | 1                 | frames exchange keys and values place by place                  |
    | LAPS (ViT)  | "tube"   | 1                 | frames exchange channels place by place                         |

"match" merges inside frames and between them; "tube" gives all frames the same merges, so that token i stays one place
of the clip wherever a model relates frames place by place. TPS and LAPS on Visformer cannot merge: windows and
convolutions need whole maps.

Models are known by the names of their classes and configs, never imported.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedConfig

from .configuration_laps import LAPSConfig
from .configuration_xvit import XViTConfig
from .layers import pair
from .leap_attention import leap_order
from .plug import ConfigOverlay
from .token_merging import MERGE_METHODS, TUBE_METHODS, MergeState, size_weighted_mean

Grid = tuple[int, int, int]  # frames (or tubelets), rows, columns of the tokens


class Merging(Protocol):
    """What a backbone asks of the plug that merges its tokens."""

    last_stage: int
    remember_last_hidden_state: bool

    def before(self, module: nn.Module, hook: Callable, **options: bool) -> None: ...

    def follow(self, parent: nn.Module, path: str, hook: Callable, before: bool = False) -> None: ...

    def replace_attribute(self, module: nn.Module, name: str, value: Any) -> None: ...

    def let_see_sizes(self, attention: nn.Module, stage: int, strength: float | None = None) -> None: ...

    def has_merged(self, stage: int) -> bool: ...

    def state_at(self, stage: int, device: torch.device) -> MergeState: ...

    def weigh_mean(self, module: nn.Module, args: tuple) -> tuple | None: ...

    def weigh_probabilities(self, stage: int, module: nn.Module, args: tuple) -> tuple | None: ...


class VideoBackbone:
    """A video transformer: where its parts are, how its tokens lie, what a block costs, what its classifier reads."""

    model_type: str
    config_class: type[PreTrainedConfig] | None = None  # of this package; None: AutoConfig knows it
    blocks: str  # path to the list of blocks after which tokens can merge
    attention: str  # path in a block to the module that computes the attention
    key_projection: str  # path in that module
    fused_projection = False  # queries, keys and values in one product
    prefix_tokens = 0  # class tokens ahead of the others
    topology = "match"
    size_weight = 0.0  # alpha: attention logits get alpha * log(size of the key)
    sizes_as_mask = False  # see SizeAwareAttention
    methods = tuple(method for method in MERGE_METHODS if method not in TUBE_METHODS)
    call_arguments: dict[str, Any] = {}  # for every call of the base model
    unused: tuple[str, ...] = ()  # parts of the base model that no classifier reads
    zero_at_start: tuple[str, ...] = ()  # parameters that the base model's own initialisation leaves out
    head: tuple[str, ...] = ()  # parts of Transformers' classifier between the base model and the last linear layer

    # --- sizes ---

    def check_config(self, config: PreTrainedConfig) -> None:
        """Raise a ValueError for a variant whose tokens cannot merge."""

    def num_blocks(self, config: PreTrainedConfig) -> int:
        """Blocks after which tokens can merge."""
        return config.num_hidden_layers

    def num_hidden_layers(self, config: PreTrainedConfig) -> int:
        """All blocks."""
        return config.num_hidden_layers

    def num_channels(self, config: PreTrainedConfig) -> int:
        return config.num_channels

    def tubelet(self, config: PreTrainedConfig) -> Grid:
        """Frames, rows and columns of pixels that make a token."""
        return (config.tubelet_size, *pair(config.patch_size))

    def clip_size(self, config: PreTrainedConfig) -> Grid:
        """Frames, height and width of the clips that the config is for."""
        return (config.num_frames, *pair(config.image_size))

    def grid(self, config: PreTrainedConfig, clip_size: Sequence[int]) -> Grid:
        frames, rows, columns = (size // step for size, step in zip(clip_size, self.tubelet(config), strict=True))
        return frames, rows, columns

    def own_grid(self, config: PreTrainedConfig) -> Grid:
        """The tokens of the clips that the config is for."""
        return self.grid(config, self.clip_size(config))

    # --- calls ---

    def check_call(self, config: PreTrainedConfig, grid: Grid, arguments: dict[str, Any]) -> None:
        """Raise a ValueError for what a call asks for that merged tokens cannot give."""

    def require_own_grid(self, config: PreTrainedConfig, grid: Grid, axes: slice = slice(None)) -> None:
        own = self.own_grid(config)
        if grid[axes] != own[axes]:
            raise ValueError(
                f"This {config.model_type} takes clips of {own} tokens over time, rows and columns, as its config "
                "says; these "
                f"clips have {grid}."
            )

    # --- how tokens lie ---

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

    # --- what the model must be told ---

    def plug_attention(self, merging: Merging, block: nn.Module, stage: int) -> None:
        """Let the attention of a block behind `stage` merges see the sizes of the tokens."""
        merging.let_see_sizes(block.get_submodule(self.attention), stage)

    def plug_block(self, merging: Merging, block: nn.Module, stage: int) -> None:
        """What else a block behind `stage` merges must be told."""

    def plug_head(self, merging: Merging, model: nn.Module) -> None:
        """What must be told to the modules that read the merged tokens."""

    # --- what the classifier reads ---

    def pooler(self, classifier: nn.Module) -> nn.Module | None:
        """The parts of Transformers' classifier between the base model and its last linear layer; `pool` knows them."""
        parts = {name: getattr(classifier, name) for name in self.head}
        present = {name: part for name, part in parts.items() if part is not None}
        if len(self.head) < 2:
            return next(iter(present.values()), None)
        return nn.ModuleDict(present)

    def pool(self, pooler: nn.Module | None, outputs: Any, sizes: torch.Tensor | None) -> torch.Tensor:
        """What the backbone's own classifier reads, (batch, features).

        Args:
            outputs: of the base model.
            sizes: (batch, L), or None if nothing has merged.
        """
        return outputs.last_hidden_state[:, 0]  # the class token

    def feature_size(self, config: PreTrainedConfig) -> int:
        """Channels of what `pool` gives."""
        return config.hidden_size

    # --- costs ---

    def embedding_macs(self, config: PreTrainedConfig) -> int:
        tokens = math.prod(self.own_grid(config))
        return tokens * math.prod(self.tubelet(config)) * self.num_channels(config) * config.hidden_size

    def block_macs(self, config: PreTrainedConfig, frames: int, places: int) -> int:
        """Multiply-accumulates of a block on `frames` times `places` tokens, without the size channel."""
        tokens, channels = self.prefix_tokens + frames * places, config.hidden_size
        hidden = intermediate_size(config)
        return tokens * channels * (4 * channels + 2 * hidden) + 2 * tokens**2 * channels

    def macs_behind_blocks(self, config: PreTrainedConfig, frames: int, places: int) -> int:
        """Of what the base model does with the tokens that are left after the last of `blocks`."""
        return 0


def intermediate_size(config: PreTrainedConfig) -> int:
    size = getattr(config, "intermediate_size", None)
    return int(config.mlp_ratio * config.hidden_size) if size is None else size


class VideoMAE(VideoBackbone):
    model_type = "videomae"
    blocks = "encoder.layer"
    attention = "attention.attention"
    key_projection = "key"
    head = ("fc_norm",)

    def check_call(self, config: PreTrainedConfig, grid: Grid, arguments: dict[str, Any]) -> None:
        if arguments.get("bool_masked_pos") is not None:
            raise ValueError(
                "Masked clips (bool_masked_pos) have no grid of tokens to merge: remove_token_merging(model) before "
                "pre-training on masked clips."
            )
        self.require_own_grid(config, grid)

    def plug_head(self, merging: Merging, model: nn.Module) -> None:
        if getattr(model, "fc_norm", None) is not None:  # its classifier, which takes a mean over tokens
            merging.remember_last_hidden_state = True
            merging.follow(model, "fc_norm", merging.weigh_mean, before=True)

    def pool(self, pooler: nn.Module | None, outputs: Any, sizes: torch.Tensor | None) -> torch.Tensor:
        tokens = outputs.last_hidden_state
        if pooler is None:  # without mean pooling: the first patch, into which others merge but which stays
            return tokens[:, 0]
        return pooler(tokens.mean(1) if sizes is None else size_weighted_mean(tokens, sizes))


class ViViT(VideoBackbone):
    model_type = "vivit"
    blocks = "layers"
    attention = "attention"
    key_projection = "k_proj"
    prefix_tokens = 1
    size_weight = 1.0

    def tubelet(self, config: PreTrainedConfig) -> Grid:
        frames, rows, columns = config.tubelet_size
        return frames, rows, columns

    def check_call(self, config: PreTrainedConfig, grid: Grid, arguments: dict[str, Any]) -> None:
        if arguments.get("attention_mask") is not None:
            raise ValueError(
                "An attention_mask has one entry for each token of the clip and does not fit merged ones: "
                "remove_token_merging(model) to use one."
            )
        # Also with interpolate_pos_encoding, which takes positions over time and space for one square map.
        self.require_own_grid(config, grid)

    def plug_block(self, merging: Merging, block: nn.Module, stage: int) -> None:
        merging.before(block, without_mask, with_kwargs=True)


def without_mask(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of a ViViT's block: the model makes a mask that hides nothing when it is exported, for the
    tokens of a whole clip. Another mask is refused by `check_call`.
    """
    return args[:1], {**kwargs, "attention_mask": None}


class VJEPA2(VideoBackbone):
    model_type = "vjepa2"
    blocks = "encoder.layer"
    attention = "attention"
    key_projection = "key"
    call_arguments = {"skip_predictor": True}
    unused = ("predictor",)
    head = ("pooler",)

    def num_channels(self, config: PreTrainedConfig) -> int:
        return config.in_chans

    def clip_size(self, config: PreTrainedConfig) -> Grid:
        return config.frames_per_clip, config.crop_size, config.crop_size

    def grid(self, config: PreTrainedConfig, clip_size: Sequence[int]) -> Grid:
        # A clip shorter than a tubelet is repeated by the model.
        return super().grid(config, (max(clip_size[0], config.tubelet_size), *clip_size[1:]))

    def check_call(self, config: PreTrainedConfig, grid: Grid, arguments: dict[str, Any]) -> None:
        if not arguments.get("skip_predictor"):
            raise ValueError(
                "The predictor of V-JEPA 2 counts the tokens of a whole clip, merged ones have no place there: call "
                "the "
                "model with skip_predictor=True, as its classifier does."
            )
        # It numbers places by its config, whatever the clip.
        self.require_own_grid(config, grid, slice(1, None))

    def plug_block(self, merging: Merging, block: nn.Module, stage: int) -> None:
        attention = block.get_submodule(self.attention)
        merging.replace_attribute(
            attention, "get_position_ids", partial(rotate_by_centroids, merging, stage, attention)
        )

    def plug_head(self, merging: Merging, model: nn.Module) -> None:
        # The pooler was trained on all tokens: to it, a merged one must look like those that it stands for.
        poolers = ("VJEPA2PoolerSelfAttention", "VJEPA2PoolerCrossAttention")
        for module in model.modules():
            if type(module).__name__ in poolers:
                merging.let_see_sizes(module, merging.last_stage, strength=1.0)

    def pool(self, pooler: nn.Module | None, outputs: Any, sizes: torch.Tensor | None) -> torch.Tensor:
        return pooler(outputs.last_hidden_state)


def rotate_by_centroids(
    merging: Merging, stage: int, attention: nn.Module, hidden_states: torch.Tensor, masks: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """`get_position_ids` of a V-JEPA 2's attention behind `stage` merges: (batch, 1, L) for time, rows and columns."""
    if not merging.has_merged(stage):
        return type(attention).get_position_ids(attention, hidden_states, masks)
    positions = merging.state_at(stage, hidden_states.device).positions
    # in half precision as exact as the model's own rotation
    return tuple(positions.to(hidden_states.dtype)[:, None].unbind(-1))


class FrameByFrame(VideoBackbone):
    """Frames in the batch, (batch * frames, class token and places, channels); frames are related place by place."""

    prefix_tokens = 1
    topology = "tube"
    size_weight = 1.0
    methods = TUBE_METHODS
    attention = "attention"
    key_projection = "qkv"
    fused_projection = True

    def tubelet(self, config: PreTrainedConfig) -> Grid:
        return (1, *pair(config.patch_size))

    def split(self, hidden_states: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        prefix, tokens = super().split(hidden_states, grid)
        return prefix, tokens.unflatten(0, (-1, grid[0])).flatten(1, 2)

    def join(self, prefix: torch.Tensor, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return super().join(prefix, tokens.unflatten(1, (grid[0], -1)).flatten(0, 1), grid)

    def key_sizes(self, state: MergeState, key: torch.Tensor) -> torch.Tensor:
        # In a tube a place has the same size in all frames; a group of the kernel has one frame's keys, or several's.
        frame = super().key_sizes(state._replace(sizes=state.sizes.unflatten(1, (state.groups, -1))[:, 0]), key)
        frames_in_group = key.shape[2] // frame.shape[1]
        return frame.repeat(1, frames_in_group).repeat_interleave(key.shape[0] // frame.shape[0], dim=0)

    def block_macs(self, config: PreTrainedConfig, frames: int, places: int) -> int:
        tokens, channels = frames * (self.prefix_tokens + places), config.hidden_size
        attended = self.frames_attended(config) * (self.prefix_tokens + places)
        return tokens * channels * (4 * channels + 2 * intermediate_size(config) + 2 * attended)

    def frames_attended(self, config: PreTrainedConfig) -> int:
        return 1


class TimeSformer(FrameByFrame):
    """Hidden states (batch, 1 + places * frames, channels), place-major; keys of its spatial attention by frames."""

    model_type = "timesformer"
    blocks = "encoder.layer"
    attention = "attention.attention"
    key_projection = "qkv"
    zero_at_start = ("embeddings.time_embeddings",)

    def check_config(self, config: PreTrainedConfig) -> None:
        if config.attention_type != "divided_space_time":
            raise ValueError(
                f"Token merging knows TimeSformer's attention_type='divided_space_time', not {config.attention_type!r}."
            )

    def check_call(self, config: PreTrainedConfig, grid: Grid, arguments: dict[str, Any]) -> None:
        self.require_own_grid(config, grid)

    def split(self, hidden_states: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = hidden_states[:, 1:].unflatten(1, (-1, grid[0])).transpose(1, 2)
        return hidden_states[:, :1], tokens.flatten(1, 2)

    def join(self, prefix: torch.Tensor, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        return torch.cat((prefix, tokens.unflatten(1, (grid[0], -1)).transpose(1, 2).flatten(1, 2)), dim=1)

    def key_tokens(self, attention: nn.Module, keys: torch.Tensor, grid: Grid) -> torch.Tensor:
        return FrameByFrame.split(self, keys, grid)[1]

    def plug_attention(self, merging: Merging, block: nn.Module, stage: int) -> None:
        # Its attention is written out and ends in a dropout of the weights: there they are weighed by size.
        weigh = partial(merging.weigh_probabilities, stage)
        merging.follow(block.get_submodule(self.attention), "attn_drop", weigh, before=True)

    def plug_block(self, merging: Merging, block: nn.Module, stage: int) -> None:
        # The block divides its tokens into columns by the config's sizes: one column takes any number of them.
        config = block.config
        merging.replace_attribute(block, "config", ConfigOverlay(config, image_size=config.patch_size))

    def block_macs(self, config: PreTrainedConfig, frames: int, places: int) -> int:
        channels = config.hidden_size
        in_time = frames * places * channels * (5 * channels + 2 * frames)
        in_space = frames * (1 + places) * channels * (4 * channels + 2 * (1 + places))
        return in_time + in_space + (1 + frames * places) * 2 * channels * config.intermediate_size


class VideoPrism(FrameByFrame):
    """Spatial layers on single frames, then temporal layers on single places, (batch * places, frames, channels)."""

    model_type = "videoprism_vision_model"
    blocks = "spatial_layers"
    key_projection = "k_proj"
    fused_projection = False
    prefix_tokens = 0
    sizes_as_mask = True  # logits are capped
    head = ("head", "head_layernorm")

    def num_blocks(self, config: PreTrainedConfig) -> int:
        return config.num_spatial_layers

    def num_hidden_layers(self, config: PreTrainedConfig) -> int:
        return config.num_spatial_layers + config.num_temporal_layers

    def tubelet(self, config: PreTrainedConfig) -> Grid:
        frames, rows, columns = config.tubelet_size
        return frames, rows, columns

    def check_call(self, config: PreTrainedConfig, grid: Grid, arguments: dict[str, Any]) -> None:
        self.require_own_grid(config, grid)

    def plug_head(self, merging: Merging, model: nn.Module) -> None:
        # Between the frames of a place all sizes are equal; the pooling head reads all places.
        for module in model.modules():
            if type(module).__name__ == "VideoPrismMultiheadAttentionPoolingHead":
                merging.let_see_sizes(module, merging.last_stage, strength=1.0)

    def pool(self, pooler: nn.Module | None, outputs: Any, sizes: torch.Tensor | None) -> torch.Tensor:
        return pooler["head_layernorm"](pooler["head"](outputs.last_hidden_state)[0])[:, 0]

    def macs_behind_blocks(self, config: PreTrainedConfig, frames: int, places: int) -> int:
        tokens, channels = frames * places, config.hidden_size
        per_token = channels * (4 * channels + 2 * intermediate_size(config) + 2 * frames)
        return config.num_temporal_layers * tokens * per_token


class XViT(FrameByFrame):
    model_type = "xvit"
    config_class = XViTConfig
    blocks = "blocks"

    def check_config(self, config: PreTrainedConfig) -> None:
        if config.summary_token:
            raise ValueError(
                "Token merging needs an XViT with summary_token=False: the summary is a plain mean over patches."
            )

    def pool(self, pooler: nn.Module | None, outputs: Any, sizes: torch.Tensor | None) -> torch.Tensor:
        return outputs.pooler_output

    def feature_size(self, config: PreTrainedConfig) -> int:
        return config.temporal_head_size if config.temporal_head_layers else config.hidden_size


class LAPS(FrameByFrame):
    model_type = "laps"
    config_class = LAPSConfig
    blocks = "backbone.blocks"

    def check_config(self, config: PreTrainedConfig) -> None:
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

    def pool(self, pooler: nn.Module | None, outputs: Any, sizes: torch.Tensor | None) -> torch.Tensor:
        return outputs.pooler_output

    def frames_attended(self, config: PreTrainedConfig) -> int:
        return {"frame": 1, "leap": 2}.get(config.attention_scope, config.num_frames)


VIDEO_TRANSFORMERS: dict[str, VideoBackbone] = {
    "VideoMAEModel": VideoMAE(),
    "VivitModel": ViViT(),
    "TimesformerModel": TimeSformer(),
    "VJEPA2Model": VJEPA2(),
    "VideoPrismVisionModel": VideoPrism(),
    "XViTModel": XViT(),
    "LAPSModel": LAPS(),
}
# Models that a user may try, and why their tokens cannot merge
CANNOT_MERGE = {"tps": "Its windows need whole maps of patches."}


def backbone_of_config(config: PreTrainedConfig) -> VideoBackbone:
    """Raises:
    ValueError: for a backbone that is not in the table, or a variant of one that cannot merge.
    """
    for backbone in VIDEO_TRANSFORMERS.values():
        if backbone.model_type == config.model_type:
            backbone.check_config(config)
            return backbone
    why = f" {CANNOT_MERGE[config.model_type]}" if config.model_type in CANNOT_MERGE else ""
    known = ", ".join(backbone.model_type for backbone in VIDEO_TRANSFORMERS.values())
    raise ValueError(f"Tokens of a {config.model_type!r} model cannot be merged here.{why} Known are: {known}.")
