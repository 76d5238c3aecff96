# Copyright 2026 The hf_tps authors. Apache-2.0.
"""TPS: a 2D Swin transformer that sees time through patches and channels taken from other frames (arXiv 2207.13259)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checkpoint_reading import Checkpoint
from .configuration_tps import TPSConfig
from .cpu_pieces import attend_in_pieces
from .image_weights import SWIN_FREE_FIELDS, check_given_sizes, inflate_swin, swin_image_fields
from .layers import MLP, DropPath, drop_path_rates, eager_attention_forward
from .modeling_base import VideoClassificationMixin, VideoPreTrainedModel, check_pixel_values
from .temporal_shift import channel_shift, resolve_patch_shift_pattern
from .window_layout import (
    Pattern,
    WindowLayout,
    relative_position_index,
    temporal_resize_matrix,
    window_grid,
    window_layout,
)

logger = logging.get_logger(__name__)


class TPSEmbeddings(nn.Module):
    """Tubelets of `tubelet_size` frames by `patch_size` by `patch_size` pixels as tokens, normalised.

    The projection is a linear layer on flattened tubelets (channel, frame, row, column), which is what a convolution
    with stride equal to its kernel does, and which lands in the layout of the blocks.
    """

    def __init__(self, config: TPSConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.tubelet_size = config.tubelet_size
        self.projection = nn.Linear(config.num_channels * config.tubelet_size * config.patch_size**2, config.embed_dim)
        # eps 1e-5 whatever layer_norm_eps says, as in the released code and in Transformers' Swin
        self.norm = nn.LayerNorm(config.embed_dim, eps=1e-5)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, num_frames, channels, height, width) to (batch, frames, rows, columns, embed_dim)."""
        patch, tubelet = self.patch_size, self.tubelet_size
        frames, _, height, width = pixel_values.shape[1:]
        padding = (0, -width % patch, 0, -height % patch, 0, 0, 0, -frames % tubelet)
        if any(padding):
            pixel_values = nn.functional.pad(pixel_values, padding)
        pixel_values = pixel_values.to(self.norm.weight.dtype)  # that of a quantised projection is int8
        tubelets = (
            pixel_values.unflatten(1, (-1, tubelet)).unflatten(-2, (-1, patch)).unflatten(-1, (-1, patch))
        )  # batch, frame, in tubelet, channel, row, in patch, column, in patch
        tubelets = tubelets.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(-4)
        return self.dropout(self.norm(self.projection(tubelets)))


class TPSAttention(nn.Module):
    """Self-attention inside windows of one frame, over patches or channels of several frames (TPS section 3).

    Window partition, cyclic window shift and patch shift are one gather before the attention and its inverse after.
    """

    def __init__(self, config: TPSConfig, channels: int, num_heads: int, shifted: bool, temporal_shift: str | None):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.head_dim = channels // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.shifted = shifted
        self.temporal_shift = temporal_shift
        self.pattern = resolve_patch_shift_pattern(config.shift_pattern) if temporal_shift == "patch" else None
        if temporal_shift == "channel" and self.head_dim < config.shift_div:
            logger.warning_once(
                f"Heads of {self.head_dim} channels have none to shift with shift_div={config.shift_div}."
            )
        self.attention_dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(channels, 3 * channels, bias=config.qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        rows = (2 * config.temporal_bias_size - 1) * (2 * config.window_size - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, num_heads))

    def position_bias(self, frames: int, window: tuple[int, int]) -> torch.Tensor:
        """(frames or 1, heads, places, places): the bias of each pair of places, see `relative_position_bias`."""
        table = self.relative_position_bias_table
        trained = self.config.temporal_bias_size
        if frames != trained:
            resize = temporal_resize_matrix(trained, frames, table.device)
            table = (resize @ table.float().reshape(resize.shape[1], -1)).reshape(-1, self.num_heads).to(table.dtype)
        temporal = None if self.temporal_shift is None else self.config.relative_position_bias
        pattern = self.pattern if self.config.shift_position_bias else None
        index = relative_position_index(frames, window, self.config.window_size, pattern, temporal, table.device)
        return table[index].permute(0, 3, 1, 2)

    def attention_bias(self, frames: int, height: int, width: int) -> torch.Tensor:
        """Position bias and window mask of a clip's windows: (frames * windows, heads, places, places), or 1 first."""
        grid = window_grid(height, width, self.config.window_size, self.shifted)
        mask = self.layout(frames, height, width, self.pattern).mask
        bias = self.position_bias(frames, grid.window)
        if mask is None and bias.shape[0] == 1:
            return bias
        bias = bias[:, None]
        if mask is not None:
            bias = bias + mask[None, :, None].to(bias.dtype)
        return bias.expand(frames, grid.num_windows[0] * grid.num_windows[1], -1, -1, -1).flatten(0, 1)

    def layout(self, frames: int, height: int, width: int, pattern: Pattern | None) -> WindowLayout:
        device = self.relative_position_bias_table.device
        return window_layout(frames, height, width, self.config.window_size, self.shifted, pattern, device)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, frames, height, width, channels) to the same, and the attention weights if the kernel gives them."""
        batch, frames, height, width, channels = hidden_states.shape
        layout = self.layout(frames, height, width, self.pattern)
        way_back = layout if self.config.shift_back else self.layout(frames, height, width, None)
        bias = self.attention_bias(frames, height, width)
        places = bias.shape[-1]
        attended, weights = attend_in_pieces(
            self, self.attend, 3 * places * channels, self.to_windows(hidden_states, layout, places), bias, **kwargs
        )
        attended = attended.view(batch, -1, channels).index_select(1, way_back.restore)
        return attended.view(batch, frames, height, width, channels), weights

    def to_windows(self, hidden_states: torch.Tensor, layout: WindowLayout, places: int) -> torch.Tensor:
        """(batch, frames, height, width, channels) to (batch * frames * windows, places, channels)."""
        if self.temporal_shift == "channel":
            hidden_states = channel_shift(hidden_states, self.config.shift_div, self.num_heads)
        tokens = hidden_states.flatten(1, 3)
        if layout.gather.shape[0] != tokens.shape[1]:
            tokens = nn.functional.pad(tokens, (0, 0, 0, 1))  # the token of zeros that the padding takes
        return tokens.index_select(1, layout.gather).view(-1, places, tokens.shape[-1])

    def attend(
        self, windows: torch.Tensor, bias: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Windows (windows, places, channels) to the same, and the attention weights if the kernel gives them."""
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attention_interface(
            self,
            query,
            key,
            value,
            bias,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.dropout(self.proj(attended.flatten(-2))), weights


class TPSBlock(GradientCheckpointingLayer):
    """One Swin block (TPS figure 4): attention with the block's temporal shift, then the MLP, both pre-normalised."""

    def __init__(
        self,
        config: TPSConfig,
        channels: int,
        num_heads: int,
        drop_path_rate: float,
        shifted: bool,
        temporal_shift: str | None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.attention = TPSAttention(config, channels, num_heads, shifted, temporal_shift)
        self.norm2 = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = MLP(channels, int(config.mlp_ratio * channels), config.hidden_act, config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(self.attention(self.norm1(hidden_states), **kwargs)[0])
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)))


class TPSPatchMerging(nn.Module):
    """Swin's patch merging in each frame: 2 x 2 patches, normalised, become one with twice the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps=1e-5)  # eps as in TPSEmbeddings
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, frames, height, width, channels) to half the height and width, rounded up, and twice the channels."""
        height, width = hidden_states.shape[2:4]
        if height % 2 or width % 2:
            hidden_states = nn.functional.pad(hidden_states, (0, 0, 0, width % 2, 0, height % 2))
        # batch, frame, row, in row, column, in column, channel; the four are concatenated column by column
        merged = hidden_states.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 1, 2, 4, 5, 3, 6).flatten(-3)
        return self.reduction(self.norm(merged))


class TPSStage(nn.Module):
    """Blocks of one resolution, then patch merging (not in the last stage)."""

    def __init__(self, config: TPSConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        channels = config.embed_dim * 2**stage
        self.blocks = nn.ModuleList(
            TPSBlock(
                config,
                channels,
                config.num_heads[stage],
                drop_path_rate,
                shifted=index % 2 == 1,
                temporal_shift=config.shift_of_block(stage, index),
            )
            for index, drop_path_rate in enumerate(drop_path_rates)
        )
        self.downsample = TPSPatchMerging(channels) if stage < len(config.depths) - 1 else None

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, **kwargs)
        return hidden_states if self.downsample is None else self.downsample(hidden_states)


class TPSPreTrainedModel(VideoPreTrainedModel):
    config: TPSConfig
    base_model_prefix = "tps"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TPSEmbeddings", "TPSBlock", "TPSPatchMerging"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # a bias per head is added to the attention scores, which neither of these kernels can do
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_record_outputs = {"hidden_states": TPSStage, "attentions": TPSAttention}
    _auto_classes = {
        "AutoConfig": "configuration_tps.TPSConfig",
        "AutoModel": "modeling_tps.TPSModel",
        "AutoModelForVideoClassification": "modeling_tps.TPSForVideoClassification",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TPSAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=self.config.initializer_range)
        elif module is self.base_model.embeddings.projection:
            # The release leaves its convolution as torch makes it: uniform, by the number of values that it reads.
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif module is getattr(self, "classifier", None):
            init.normal_(module.weight, std=self.config.initializer_range / 2)

    @classmethod
    def config_and_weights_from_image(
        cls, checkpoint: Checkpoint, overrides: dict
    ) -> tuple[TPSConfig, dict[str, torch.Tensor]]:
        """A Swin, inflated (released `inflate_weights`). Its window stays unless `overrides` names another one."""
        fields, weights = swin_image_fields(checkpoint)
        check_given_sizes(checkpoint.source, fields, overrides, free=SWIN_FREE_FIELDS)
        config = TPSConfig(**{**fields, **overrides})
        return config, inflate_swin(weights, config.tubelet_size, config.temporal_bias_size, config.window_size)


class TPSModel(TPSPreTrainedModel):
    """The bare TPS network: features of a clip.

    Args:
        config ([`TPSConfig`])
    """

    def __init__(self, config: TPSConfig):
        super().__init__(config)
        config.validate_architecture()
        rates = drop_path_rates(config.drop_path_rate, sum(config.depths))
        starts = [sum(config.depths[:stage]) for stage in range(len(config.depths))]
        self.embeddings = TPSEmbeddings(config)
        self.stages = nn.ModuleList(
            TPSStage(config, stage, rates[start : start + config.depths[stage]]) for stage, start in enumerate(starts)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.projection = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        r"""Features of clips.

        Args:
            pixel_values: (batch, num_frames, channels, height, width), normalised. Any height and width; as many frames
                as the config says (the last tubelet may be incomplete).
            kwargs: `output_hidden_states`, `output_attentions` (with `attn_implementation="eager"`), `return_dict`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` (batch, frames * rows * columns, hidden_size),
            frame-major, normalised; `pooler_output` (batch, hidden_size), their mean; `hidden_states`, the patch
            embedding and then what each stage gives, (batch, frames, rows, columns, channels); `attentions`, one for
            each block, (batch * frames * windows, heads, places, places).

        Raises:
            ValueError: for another rank, number of channels or of frames, and for pixels that are not floats.
        """
        check_pixel_values(pixel_values, self.config.num_channels)
        given, tubelet = pixel_values.shape[1], self.config.tubelet_size
        if -(-given // tubelet) != self.config.num_temporal_positions:
            raise ValueError(
                f"This model reads num_frames={self.config.num_frames} frames (tubelets of {tubelet}); pixel_values "
                "has "
                f"{given} frames, shape {tuple(pixel_values.shape)}. Sample as many, or load the model with "
                f"from_pretrained(..., num_frames={given}), which interpolates its temporal position bias."
            )
        hidden_states = self.embeddings(pixel_values)
        for stage in self.stages:
            hidden_states = stage(hidden_states, **kwargs)
        tokens = self.norm(hidden_states).flatten(1, 3)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(dim=1))


class TPSForVideoClassification(VideoClassificationMixin, TPSPreTrainedModel):
    """TPS with a linear classifier on the average of all tokens.

    Args:
        config ([`TPSConfig`])
    """

    def __init__(self, config: TPSConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.tps = TPSModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


__all__ = ["TPSForVideoClassification", "TPSModel", "TPSPreTrainedModel"]
