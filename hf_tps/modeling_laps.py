# Copyright 2026 The hf_tps authors. Apache-2.0.
"""LAPS on Visformer or ViT: distant frames attend in pairs, then exchange channels (arXiv 2207.05526)."""

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
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .checkpoint_reading import Checkpoint
from .configuration_laps import LAPSConfig
from .cpu_pieces import attend_in_pieces, in_pieces
from .image_weights import (
    VISFORMER_FREE_FIELDS,
    VIT_FREE_FIELDS,
    check_given_sizes,
    is_visformer,
    resize_visformer_positions,
    resize_vit_positions,
    visformer_image_fields,
    visformer_map_side,
    vit_image_fields,
)
from .layers import MLP, DropPath, drop_path_rates, eager_attention_forward
from .leap_attention import leap_order, leap_pairs
from .modeling_base import VideoClassificationMixin, VideoPreTrainedModel, check_pixel_values
from .temporal_shift import periodic_shift, token_shift
from .vit_layers import ViTEmbeddings, attend


class LAPSAttention(nn.Module):
    """Attention among the tokens of two frames a leap apart (LAPS section 3), of one frame, or of the whole clip.

    The periodic shift of channels between neighbouring frames follows, head by head, before the output projection.
    """

    def __init__(self, config: LAPSConfig, channels: int, level: int | None, bias: bool):
        super().__init__()
        self.config = config
        self.num_heads = config.num_heads
        self.scaling = (channels // config.num_heads) ** -0.5
        self.is_causal = False
        self.attention_dropout = config.attention_probs_dropout_prob
        self.level = level
        self.joint = config.attention_scope == "joint"
        self.heads_of_shift = {"periodic": config.num_heads, "plain": 1}.get(config.shift)
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias and config.qkv_bias)
        self.proj = nn.Linear(channels, channels, bias=bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, frames: int, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch * frames, tokens, channels) to the same, and the attention weights if the kernel gives them."""
        clips = hidden_states.unflatten(0, (-1, frames))
        attended, weights = attend_in_pieces(self, self.attend_in_clips, 3 * clips[0].numel(), clips, **kwargs)
        return attended.flatten(0, 1), weights

    def attend_in_clips(self, clips: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, frames, tokens, channels) to the same, and the attention weights if the kernel gives them."""
        frames, tokens, channels = clips.shape[1:]
        if self.level is not None:
            order, inverse = leap_order(frames, self.level, clips.device)
            groups = clips.index_select(1, order).unflatten(1, (-1, 2)).flatten(2, 3).flatten(0, 1)
        else:
            groups = clips.flatten(1, 2) if self.joint else clips.flatten(0, 1)

        query, key, value = self.qkv(groups).chunk(3, dim=-1)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(attention_interface, self, query, key, value, **kwargs)

        attended = attended.reshape(clips.shape[0], -1, tokens, channels)
        if self.level is not None:
            attended = attended.index_select(1, inverse)
        if self.heads_of_shift is not None:
            attended = periodic_shift(attended, self.config.shift_div, self.heads_of_shift)
        return self.dropout(self.proj(attended)), weights


class LAPSViTBlock(GradientCheckpointingLayer):
    """A ViT block with the attention of LAPS, or with TokShift's shift of the class token in the residual stream."""

    def __init__(self, config: LAPSConfig, level: int | None, drop_path_rate: float):
        super().__init__()
        self.shift_div = config.shift_div if config.shift == "token" else None
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.attention = LAPSAttention(config, config.embed_dim, level, bias=True)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        hidden = int(config.mlp_ratio * config.embed_dim)
        self.mlp = MLP(config.embed_dim, hidden, config.hidden_act, config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def shift_class_token(self, hidden_states: torch.Tensor, frames: int) -> torch.Tensor:
        if self.shift_div is None:
            return hidden_states
        return token_shift(hidden_states.unflatten(0, (-1, frames)), self.shift_div).flatten(0, 1)

    def forward(self, hidden_states: torch.Tensor, frames: int, **kwargs: Any) -> torch.Tensor:
        hidden_states = self.shift_class_token(hidden_states, frames)
        hidden_states = hidden_states + self.drop_path(self.attention(self.norm1(hidden_states), frames, **kwargs)[0])
        hidden_states = self.shift_class_token(hidden_states, frames)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)))


class LAPSViT(nn.Module):
    """ViT per frame, LAPS between frames: frames (batch * frames, channels, height, width) to tokens."""

    def __init__(self, config: LAPSConfig):
        super().__init__()
        self.embeddings = ViTEmbeddings(
            config.num_channels, config.image_size, config.patch_size, config.embed_dim, config.hidden_dropout_prob
        )
        self.blocks = nn.ModuleList(
            LAPSViTBlock(config, config.level_of_block(0, block), rate)
            for block, rate in enumerate(drop_path_rates(config.drop_path_rate, config.depths[0]))
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor, frames: int, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (batch * frames, 1 + patches, channels), and the feature of each frame: its class token."""
        hidden_states = self.embeddings(pixel_values)
        for block in self.blocks:
            hidden_states = block(hidden_states, frames, **kwargs)
        hidden_states = self.norm(hidden_states)
        return hidden_states, hidden_states[:, 0]


class VisformerConvMLP(nn.Module):
    """MLP of Visformer's first stage: a grouped 3 x 3 convolution between the two 1 x 1 ones."""

    def __init__(self, config: LAPSConfig, channels: int):
        super().__init__()
        self.hidden_channels = 2 * channels
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=config.conv_groups, bias=False)
        self.conv3 = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(batch * frames, channels, rows, columns) to the same."""
        # pieces are joined as they lie in memory, channels last
        row_elements = self.hidden_channels * maps.shape[2] * maps.shape[3]
        return in_pieces(self.forward_maps, row_elements, maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """(batch * frames, rows, columns, channels) to the same."""
        maps = maps.permute(0, 3, 1, 2)
        maps = self.conv3(self.activation(self.conv2(self.activation(self.conv1(maps)))))
        return maps.permute(0, 2, 3, 1)


class VisformerConvBlock(GradientCheckpointingLayer):
    """A block of the first stage: no attention."""

    def __init__(self, config: LAPSConfig, channels: int, drop_path_rate: float):
        super().__init__()
        self.norm2 = nn.BatchNorm2d(channels, eps=config.batch_norm_eps)
        self.mlp = VisformerConvMLP(config, channels)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, maps: torch.Tensor, frames: int, **kwargs: Any) -> torch.Tensor:
        return maps + self.drop_path(self.mlp(self.norm2(maps)))


class VisformerBlock(GradientCheckpointingLayer):
    """A block of the later stages: attention of LAPS between the frames, then the MLP."""

    def __init__(self, config: LAPSConfig, channels: int, level: int | None, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels, eps=config.batch_norm_eps)
        self.attention = LAPSAttention(config, channels, level, bias=False)
        self.norm2 = nn.BatchNorm2d(channels, eps=config.batch_norm_eps)
        # 1 x 1 convolutions are linear layers on the channels, which lie last in memory
        self.mlp = MLP(channels, int(config.mlp_ratio * channels), config.hidden_act, bias=False)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, maps: torch.Tensor, frames: int, **kwargs: Any) -> torch.Tensor:
        maps = maps + self.drop_path(self.attend(self.norm1(maps), frames, **kwargs))
        return maps + self.drop_path(self.mlp(self.norm2(maps).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def attend(self, maps: torch.Tensor, frames: int, **kwargs: Any) -> torch.Tensor:
        """The attention, on maps (batch * frames, channels, rows, columns)."""
        attended, _ = self.attention(maps.permute(0, 2, 3, 1).flatten(1, 2), frames, **kwargs)
        return attended.unflatten(1, maps.shape[2:]).permute(0, 3, 1, 2)


class VisformerEmbedding(nn.Module):
    """Patches of the map before, normalised."""

    def __init__(self, config: LAPSConfig, in_channels: int, channels: int, patch_size: int):
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, patch_size, stride=patch_size)
        self.norm = nn.BatchNorm2d(channels, eps=config.batch_norm_eps)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.norm(self.projection(maps))


class VisformerStage(nn.Module):
    """Patch embedding, positions and blocks of one resolution."""

    def __init__(self, config: LAPSConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        channels = config.embed_dim // 2 * 2**stage
        before = config.stem_channels if stage == 0 else channels // 2
        side = visformer_map_side(config.image_size, stage)
        self.embedding = VisformerEmbedding(config, before, channels, patch_size=4 if stage == 0 else 2)
        self.position_embeddings = nn.Parameter(torch.empty(1, channels, side, side))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.blocks = nn.ModuleList(
            VisformerConvBlock(config, channels, rate)
            if stage == 0
            else VisformerBlock(config, channels, config.level_of_block(stage, block), rate)
            for block, rate in enumerate(drop_path_rates)
        )

    def forward(self, maps: torch.Tensor, frames: int, **kwargs: Any) -> torch.Tensor:
        maps = self.embedding(maps)
        positions = self.position_embeddings
        if positions.shape[2:] != maps.shape[2:]:
            positions = nn.functional.interpolate(
                positions.float(), size=maps.shape[2:], mode="bicubic", align_corners=False
            ).to(positions.dtype)
        maps = self.dropout(maps + positions)
        for block in self.blocks:
            maps = block(maps, frames, **kwargs)
        return maps


class VisformerStem(nn.Module):
    def __init__(self, config: LAPSConfig):
        super().__init__()
        self.conv = nn.Conv2d(config.num_channels, config.stem_channels, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(config.stem_channels, eps=config.batch_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(pixel_values)).relu_()


class LAPSVisformer(nn.Module):
    """Visformer per frame, LAPS between frames: frames (batch * frames, channels, height, width) to tokens."""

    def __init__(self, config: LAPSConfig):
        super().__init__()
        rates = drop_path_rates(config.drop_path_rate, sum(config.depths))
        starts = [sum(config.depths[:stage]) for stage in range(3)]
        self.stem = VisformerStem(config)
        self.stages = nn.ModuleList(
            VisformerStage(config, stage, rates[start : start + config.depths[stage]])
            for stage, start in enumerate(starts)
        )
        self.norm = nn.BatchNorm2d(config.hidden_size, eps=config.batch_norm_eps)

    def forward(self, pixel_values: torch.Tensor, frames: int, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (batch * frames, rows * columns, channels), and the feature of each frame: their mean."""
        pixel_values = pixel_values.to(self.stem.norm.weight.dtype)  # that of a quantised convolution is int8
        maps = self.stem(pixel_values.contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            maps = stage(maps, frames, **kwargs)
        tokens = self.norm(maps).permute(0, 2, 3, 1).flatten(1, 2)
        return tokens, tokens.mean(dim=1)


class LAPSPreTrainedModel(VideoPreTrainedModel):
    config: LAPSConfig
    base_model_prefix = "laps"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViTEmbeddings", "LAPSViTBlock", "VisformerStem", "VisformerStage"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": [OutputRecorder(VisformerStage), OutputRecorder(LAPSViTBlock)],
        "attentions": LAPSAttention,
    }
    _auto_classes = {
        "AutoConfig": "configuration_laps.LAPSConfig",
        "AutoModel": "modeling_laps.LAPSModel",
        "AutoModelForVideoClassification": "modeling_laps.LAPSForVideoClassification",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViTEmbeddings):
            init.trunc_normal_(module.class_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, VisformerStage):
            init.trunc_normal_(module.position_embeddings, std=self.config.initializer_range)
        elif (
            self.config.backbone == "visformer"
            and isinstance(module, nn.Conv2d | nn.Linear)  # the linear ones are 1 x 1 convolutions in the release
            and module is not getattr(self, "classifier", None)
        ):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def config_and_weights_from_image(
        cls, checkpoint: Checkpoint, overrides: dict
    ) -> tuple[LAPSConfig, dict[str, torch.Tensor]]:
        """A Visformer file of the release, or a ViT or DeiT; positions are resized for another image size."""
        if is_visformer(checkpoint.state_dict):
            fields, weights = visformer_image_fields(checkpoint, overrides.get("num_heads"))
            fields["backbone"] = "visformer"
            check_given_sizes(checkpoint.source, fields, overrides, free=VISFORMER_FREE_FIELDS)
            config = LAPSConfig(**{**fields, **overrides})
            weights = resize_visformer_positions(weights, config.image_size)
        else:
            fields, weights = vit_image_fields(checkpoint, overrides.get("num_heads"), heads_name="num_heads")
            fields = laps_names_of_vit_fields(fields)
            check_given_sizes(checkpoint.source, fields, overrides, free=VIT_FREE_FIELDS)
            config = LAPSConfig(**{**fields, **overrides})
            weights = resize_vit_positions(weights, config.image_size // config.patch_size)
        return config, {f"backbone.{name}": tensor for name, tensor in weights.items()}


def laps_names_of_vit_fields(fields: dict) -> dict:
    """Fields of a ViT's config under the names that both backbones of LAPS share."""
    renamed = {name: value for name, value in fields.items() if name in VIT_FREE_FIELDS or name == "num_channels"}
    return {
        **renamed,
        "backbone": "vit",
        "embed_dim": fields["hidden_size"],
        "depths": (fields["num_hidden_layers"],),
        "num_heads": fields["num_attention_heads"],
        "mlp_ratio": fields["intermediate_size"] / fields["hidden_size"],
        "patch_size": fields["patch_size"],
        "qkv_bias": fields["qkv_bias"],
    }


class LAPSModel(LAPSPreTrainedModel):
    """The bare LAPS network: features of a clip.

    Args:
        config ([`LAPSConfig`])
    """

    def __init__(self, config: LAPSConfig):
        super().__init__(config)
        config.validate_architecture()
        self.backbone = LAPSVisformer(config) if config.backbone == "visformer" else LAPSViT(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        if self.config.backbone == "visformer":
            return self.backbone.stem.conv
        return self.backbone.embeddings.projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        if self.config.backbone == "visformer":
            self.backbone.stem.conv = value
        else:
            self.backbone.embeddings.projection = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        r"""Features of clips.

        Args:
            pixel_values: (batch, num_frames, channels, height, width), normalised; any number of frames that the leap
                levels can pair; height and width of at least 32 (Visformer), or multiples of the patch (ViT).
            kwargs: `output_hidden_states`, `output_attentions` (with `attn_implementation="eager"`), `return_dict`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` (batch, frames * tokens, hidden_size), normalised,
            frame-major, in a ViT the class token first in each frame; `pooler_output` (batch, hidden_size), the mean
            over the frames; `hidden_states`: Visformer, the stem and each stage's output (batch * frames, channels,
            rows, columns); ViT, the embedding and each block's output (batch * frames, 1 + patches, hidden_size);
            `attentions` of each block with attention (groups, heads, tokens, tokens), a group being a pair of frames, a
            frame or a clip.

        Raises:
            ValueError: for another rank or number of channels, a number of frames that a leap level cannot pair, a size
                that is too small or no multiple of the patch, and for pixels that are not floats.
        """
        check_pixel_values(pixel_values, self.config.num_channels)
        batch, frames, _, height, width = pixel_values.shape
        for level in self.config.levels():
            leap_pairs(frames, level)
        if self.config.backbone == "visformer" and min(height, width) < 32:
            raise ValueError(f"Height and width must be at least 32 pixels; got {height} x {width}.")
        tokens, features = self.backbone(pixel_values.flatten(0, 1), frames, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens.unflatten(0, (batch, frames)).flatten(1, 2),
            pooler_output=features.unflatten(0, (batch, frames)).mean(dim=1),
        )


class LAPSForVideoClassification(VideoClassificationMixin, LAPSPreTrainedModel):
    """LAPS with a linear classifier on the mean of its frame features (the same as the mean of each frame's logits).

    Args:
        config ([`LAPSConfig`])
    """

    def __init__(self, config: LAPSConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.laps = LAPSModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


__all__ = ["LAPSForVideoClassification", "LAPSModel", "LAPSPreTrainedModel"]
