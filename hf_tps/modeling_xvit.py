# Copyright 2026 The hf_tps authors. Apache-2.0.
"""XViT: a ViT per frame whose keys and values come in part from neighbouring frames (arXiv 2106.05968)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checkpoint_reading import Checkpoint
from .configuration_xvit import XViTConfig
from .cpu_pieces import attend_in_pieces
from .image_weights import (
    VIT_FREE_FIELDS,
    check_given_sizes,
    resize_vit_positions,
    vit_image_fields,
)
from .layers import MLP, DropPath, drop_path_rates, eager_attention_forward
from .modeling_base import VideoClassificationMixin, VideoPreTrainedModel, check_pixel_values
from .temporal_shift import mixing_shift
from .vit_layers import ViTEmbeddings, attend


class XViTSelfAttention(nn.Module):
    """Multi-head attention among the tokens of each group."""

    def __init__(self, config: XViTConfig, num_heads: int, qkv_bias: bool):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = (config.hidden_size // num_heads) ** -0.5
        self.is_causal = False
        self.attention_dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @property
    def attention_interface(self) -> Callable:
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(groups, tokens, channels) to the same, and the attention weights if the kernel gives them."""
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        attended, weights = attend(self.attention_interface, self, query, key, value, **kwargs)
        return self.dropout(self.proj(attended)), weights


class XViTMixingAttention(XViTSelfAttention):
    """Space-time mixing attention (XViT section 3.2): a frame attends to itself, over keys and values mixed in time."""

    def __init__(self, config: XViTConfig, mixes: bool):
        super().__init__(config, config.num_attention_heads, config.qkv_bias)
        self.mixes = mixes

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, frames: int, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch * frames, tokens, channels) to the same, and the attention weights if the kernel gives them."""
        clips = hidden_states.unflatten(0, (-1, frames))
        attended, weights = attend_in_pieces(self, self.attend_in_clips, 3 * clips[0].numel(), clips, **kwargs)
        return attended.flatten(0, 1), weights

    def attend_in_clips(self, clips: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, frames, tokens, channels) to the same, and the attention weights if the kernel gives them."""
        frames, tokens, channels = clips.shape[1:]
        # (batch, frames, tokens, query or key or value, channels); keys and values are mixed in one go
        qkv = self.qkv(clips.flatten(0, 1)).view(-1, frames, tokens, 3, channels)
        query, key_value = qkv[..., 0, :], qkv[..., 1:, :]
        summary = key_value[:, :, 1:].mean(dim=2) if self.config.summary_token else None
        if self.mixes:
            config = self.config
            key_value = mixing_shift(key_value, config.shift_div, config.segment_length, config.temporal_window)
        if summary is not None:
            # the mean over a frame's patches (not its class token), one more token for every frame of the clip
            key_value = torch.cat((key_value, summary[:, None].expand(-1, frames, -1, -1, -1)), dim=2)
        query, key, value = (part.flatten(0, 1) for part in (query, *key_value.unbind(3)))
        attended, weights = attend(self.attention_interface, self, query, key, value, **kwargs)
        return self.dropout(self.proj(attended)).unflatten(0, (-1, frames)), weights


class XViTBlock(GradientCheckpointingLayer):
    """A ViT block with space-time mixing attention."""

    def __init__(self, config: XViTConfig, mixes: bool, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = XViTMixingAttention(config, mixes)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act, config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, frames: int, **kwargs: Any) -> torch.Tensor:
        hidden_states = hidden_states + self.drop_path(self.attention(self.norm1(hidden_states), frames, **kwargs)[0])
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)))


class XViTTemporalLayer(nn.Module):
    """A layer of the temporal head. Unlike the ViT's: no qkv bias, eps 1e-5, as in the released code."""

    def __init__(self, config: XViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.attention = XViTSelfAttention(config, config.temporal_head_heads, qkv_bias=False)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.mlp = MLP(config.hidden_size, 4 * config.hidden_size, config.hidden_act)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states + self.attention(self.norm1(hidden_states))[0]
        return hidden_states + self.mlp(self.norm2(hidden_states))


class XViTTemporalHead(nn.Module):
    """Temporal attention (XViT section 3.3): one more token attends to the class tokens of all frames.

    There are no positions; the hidden layer before the classifier follows. Without layers it is the mean of the class
    tokens.
    """

    def __init__(self, config: XViTConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.layers = nn.ModuleList(XViTTemporalLayer(config) for _ in range(config.temporal_head_layers))
        if self.layers:
            self.class_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
            self.norm = nn.LayerNorm(config.hidden_size, eps=1e-5)
            self.dense = nn.Linear(config.hidden_size, config.temporal_head_size)
            self.activation = ACT2FN["gelu"]

    def forward(self, frame_features: torch.Tensor) -> torch.Tensor:
        """(batch, frames, hidden_size) to (batch, temporal_head_size); without layers to (batch, hidden_size)."""
        frame_features = self.dropout(frame_features)
        if not self.layers:
            return frame_features.mean(dim=1)
        tokens = torch.cat((self.class_token.expand(frame_features.shape[0], -1, -1), frame_features), dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.activation(self.dense(self.norm(tokens[:, 0])))


class XViTPreTrainedModel(VideoPreTrainedModel):
    config: XViTConfig
    base_model_prefix = "xvit"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViTEmbeddings", "XViTBlock", "XViTTemporalHead"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": XViTBlock, "attentions": XViTMixingAttention}
    _auto_classes = {
        "AutoConfig": "configuration_xvit.XViTConfig",
        "AutoModel": "modeling_xvit.XViTModel",
        "AutoModelForVideoClassification": "modeling_xvit.XViTForVideoClassification",
    }
    _new_from_image = ("classifier.", "temporal_head.", "temporal_embeddings")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViTEmbeddings):
            init.trunc_normal_(module.class_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, XViTModel):
            init.zeros_(module.temporal_embeddings)
        elif isinstance(module, XViTTemporalHead) and module.layers:
            init.zeros_(module.class_token)

    @classmethod
    def config_and_weights_from_image(
        cls, checkpoint: Checkpoint, overrides: dict
    ) -> tuple[XViTConfig, dict[str, torch.Tensor]]:
        """A ViT or DeiT; positions are resized for another image size, temporal embeddings begin at zero."""
        fields, weights = vit_image_fields(checkpoint, overrides.get("num_attention_heads"))
        check_given_sizes(checkpoint.source, fields, overrides, free=VIT_FREE_FIELDS)
        defaults = {"temporal_head_heads": fields["num_attention_heads"], "temporal_head_size": fields["hidden_size"]}
        config = XViTConfig(**{**fields, **defaults, **overrides})
        return config, resize_vit_positions(weights, config.image_size // config.patch_size)


class XViTModel(XViTPreTrainedModel):
    """The bare XViT network: features of a clip.

    Args:
        config ([`XViTConfig`])
    """

    def __init__(self, config: XViTConfig):
        super().__init__(config)
        config.validate_architecture()
        self.embeddings = ViTEmbeddings(
            config.num_channels, config.image_size, config.patch_size, config.hidden_size, config.hidden_dropout_prob
        )
        self.temporal_embeddings = nn.Parameter(torch.empty(config.num_temporal_embeddings, config.hidden_size))
        self.blocks = nn.ModuleList(
            XViTBlock(config, config.mixes(layer), rate)
            for layer, rate in enumerate(drop_path_rates(config.drop_path_rate, config.num_hidden_layers))
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.temporal_head = XViTTemporalHead(config)
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
            pixel_values: (batch, num_frames, channels, height, width), normalised; any number of frames, height and
                width multiples of the patch.
            kwargs: `output_hidden_states`, `output_attentions` (with `attn_implementation="eager"`), `return_dict`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` (batch, frames * (1 + patches), hidden_size), normalised,
            the class token first in each frame; `pooler_output`, what the classifier reads, after the temporal head:
            (batch, temporal_head_size), or (batch, hidden_size) where `temporal_head_layers` is 0; `hidden_states`, the
            embedding and each block's output, (batch * frames, 1 + patches, hidden_size); `attentions` (batch * frames,
            heads, 1 + patches, keys).

        Raises:
            ValueError: for another rank or number of channels, a size that is no multiple of the patch, and for pixels
                that are not floats.
        """
        check_pixel_values(pixel_values, self.config.num_channels)
        batch, frames = pixel_values.shape[:2]
        hidden_states = self.embeddings(pixel_values.flatten(0, 1))
        rows = self.temporal_embeddings.shape[0]
        in_time = self.temporal_embeddings.repeat(-(-frames // rows), 1)[:frames]
        hidden_states = (hidden_states.unflatten(0, (batch, frames)) + in_time[:, None]).flatten(0, 1)
        for block in self.blocks:
            hidden_states = block(hidden_states, frames, **kwargs)
        tokens = self.norm(hidden_states).unflatten(0, (batch, frames))
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens.flatten(1, 2), pooler_output=self.temporal_head(tokens[:, :, 0])
        )


class XViTForVideoClassification(VideoClassificationMixin, XViTPreTrainedModel):
    """XViT with a linear classifier behind its temporal head.

    Args:
        config ([`XViTConfig`])
    """

    def __init__(self, config: XViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.xvit = XViTModel(config)
        # Without layers the temporal head has dropped out of the frame features already.
        self.dropout = nn.Dropout(config.classifier_dropout if config.temporal_head_layers else 0.0)
        size = config.temporal_head_size if config.temporal_head_layers else config.hidden_size
        self.classifier = nn.Linear(size, config.num_labels)
        self.post_init()


__all__ = ["XViTForVideoClassification", "XViTModel", "XViTPreTrainedModel"]
