"""Count what token merging saves, on the real modules of every family at its default setting, as a Markdown table:

    python examples/benchmarks/merging_costs.py

Multiply-accumulates are half of FlopCounterMode's total, on the meta device, batch 1: no weights are made.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoPrismForVideoClassification,
    VideoPrismVisionConfig,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)

from hf_tps import (
    LAPSConfig,
    LAPSForVideoClassification,
    XViTConfig,
    XViTForVideoClassification,
    add_token_merging,
    remove_token_merging,
)
from hf_tps.token_merging_backbones import backbone_of_config
from hf_tps.token_merging_plug_in import plan_merging

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
MODELS = {
    "VideoMAE-B 16x224": (VideoMAEForVideoClassification, VideoMAEConfig()),
    "VideoMAE-L 16x224": (VideoMAEForVideoClassification, VideoMAEConfig(**LARGE)),
    "ViViT-B 32x224": (VivitForVideoClassification, VivitConfig()),
    "TimeSformer-B 8x224": (TimesformerForVideoClassification, TimesformerConfig()),
    "V-JEPA2-L 64x256": (VJEPA2ForVideoClassification, VJEPA2Config()),
    "V-JEPA2-L 16x256": (VJEPA2ForVideoClassification, VJEPA2Config(frames_per_clip=16)),
    "VideoPrism-B 16x288": (VideoPrismForVideoClassification, VideoPrismVisionConfig()),
    "XViT-B 16x224": (XViTForVideoClassification, XViTConfig()),
    "LAPS-ViT-B 8x224": (LAPSForVideoClassification, LAPSConfig(backbone="vit")),
}


def count(model: nn.Module, clip: torch.Tensor) -> tuple[float, float]:
    """G multiply-accumulates of the backbone, and of everything."""
    model.requires_grad_(
        False
    )  # no_grad() is not enough for the counter where a parameter enters a layer, as a query does
    with FlopCounterMode(display=False) as counter:
        model(clip)
    counts = {name: sum(flops.values()) / 2e9 for name, flops in counter.get_flop_counts().items()}
    return counts[f"{type(model).__name__}.{model.base_model_prefix}"], counts["Global"]


def row(name: str) -> list[str]:
    model_class, config = MODELS[name]
    plan, backbone = plan_merging(config), backbone_of_config(config)
    size = backbone.clip_size(config)
    budgets = plan.budgets(backbone.grid(config, size))
    with torch.device("meta"):
        model = model_class(config).eval()
        clip = torch.empty(1, size[0], 3, *size[1:])
    full, full_with_head = count(model, clip)
    merged, _ = count(add_token_merging(model, size_weight=0.0), clip)
    remove_token_merging(model)
    sized, sized_with_head = count(add_token_merging(model), clip)
    lengths = [budgets[0].length_in, *(budget.length_out for budget in budgets)]
    return [
        name,
        ", ".join(map(str, plan.merge_layers)),
        f"{plan.keep_ratio:.2f}",
        " -> ".join(map(str, lengths)),
        f"{full:.1f}",
        f"{merged:.1f}",
        f"{1 - merged / full:.1%}",
        f"{sized / merged - 1:+.1%}",
        f"{full_with_head:.1f} -> {sized_with_head:.1f}",
    ]


def main() -> None:
    head = ["backbone", "after blocks", "keep", "tokens", "G", "merged G", "cut", "size channel", "with head, G"]
    lines = [head, ["---"] * len(head)]
    lines += [row(name) for name in tqdm(MODELS, desc="counting", unit="model", disable=None)]
    for line in lines:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
