"""Merging in live models: every family, in and out, and what it costs."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VideoPrismForVideoClassification,
    VideoPrismVisionConfig,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from hf_tps import (
    LAPSConfig,
    LAPSForVideoClassification,
    TPSConfig,
    TPSForVideoClassification,
    XViTConfig,
    XViTForVideoClassification,
    add_token_merging,
    remove_token_merging,
)
from hf_tps.token_merging_backbones import VIDEO_TRANSFORMERS
from hf_tps.token_merging_plug_in import (
    HANDLES,
    MergeOptions,
    find_video_transformer,
    multiply_accumulates,
    plan_merging,
)
from tests import video_transformers
from tests.comparison import assert_close_to_spread, assert_gradients_close, unfused_attention

FAMILIES = list(video_transformers.MODELS)
JOINT = ["videomae", "vivit", "vjepa2"]


@torch.no_grad()
def logits(model: nn.Module, clip: torch.Tensor) -> torch.Tensor:
    return model(clip).logits.flatten(1)  # VideoPrism's have an axis more


def merging_of(model: nn.Module):
    return getattr(find_video_transformer(model), HANDLES)


def hooks_and_views(model: nn.Module) -> list:
    """Everything that plugging may leave behind."""
    return [
        (
            name,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            sorted(vars(module)),
            type(vars(module).get("config")),
        )
        for name, module in model.named_modules()
    ]


# --- in and out ---


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_keep_ratio_of_one_leaves_every_bit(name, implementation):
    model, clip = video_transformers.build(name), video_transformers.clip(name)
    if name not in video_transformers.EAGER_ONLY:
        model.set_attn_implementation(implementation)
    before = logits(model, clip)
    add_token_merging(model, keep_ratio=1.0)
    assert torch.equal(logits(model, clip), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_removal_restores_bits_hooks_and_attributes(name):
    model, clip = video_transformers.build(name), video_transformers.clip(name)
    before, parts = logits(model, clip), hooks_and_views(model)
    add_token_merging(model, keep_ratio=0.7)
    assert (logits(model, clip) - before).abs().max() > 1e-3
    remove_token_merging(model)
    assert hooks_and_views(model) == parts
    assert torch.equal(logits(model, clip), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_reads_the_tokens_that_the_budget_leaves(name):
    model, clip = video_transformers.build(name), video_transformers.clip(name)
    plan = plan_merging(model.config, MergeOptions(keep_ratio=0.7))
    family = VIDEO_TRANSFORMERS[type(find_video_transformer(model)).__name__]
    grid = family.own_grid(model.config)
    lengths = [budget.length_out for budget in plan.budgets(grid)]
    add_token_merging(model, keep_ratio=0.7)
    states = model(clip, output_hidden_states=True).hidden_states
    # behind these blocks VideoPrism has others, in time
    states = states[: family.num_blocks(model.config) + 1]
    counted = [family.split(state, grid)[1].shape[1] for state in states]
    assert counted == [64, *lengths, lengths[-1]]


def test_hidden_states_are_the_merged_ones_also_if_they_were_recorded_before():
    model, clip = video_transformers.build("videomae"), video_transformers.clip("videomae")
    model(clip, output_hidden_states=True)  # Transformers installs its recorders at the first use
    add_token_merging(model, keep_ratio=0.75)
    assert [state.shape[1] for state in model(clip, output_hidden_states=True).hidden_states] == [64, 48, 36, 27, 27]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in video_transformers.EAGER_ONLY])
def test_eager_and_sdpa_agree_and_can_be_changed_while_plugged(name):
    model, clip = video_transformers.build(name), video_transformers.clip(name)
    add_token_merging(model, keep_ratio=0.7, size_weight=1.0)
    model.set_attn_implementation("sdpa")
    fast = logits(model, clip)
    model.set_attn_implementation("eager")
    assert_close_to_spread(logits(model, clip), fast)


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_reach_the_attention_of_every_block_behind_a_merge(name):
    """Against eager attention with a mask of log sizes, written into the model's own blocks."""
    model, clip = video_transformers.build(name), video_transformers.clip(name)
    if name not in video_transformers.EAGER_ONLY:
        model.set_attn_implementation("eager")
    add_token_merging(model, keep_ratio=0.7, size_weight=1.0)
    expected = logits(model, clip)
    add_token_merging(remove_token_merging(model), keep_ratio=0.7, size_weight=0.0)
    without = logits(model, clip)
    assert (without - expected).abs().max() > 1e-4

    merging = merging_of(model)
    blocks = find_video_transformer(model).get_submodule(merging.backbone.blocks)

    # Softmax is what eager attention calls: inside the attention of a block behind a merge, it adds the log sizes.
    active = []
    plain_softmax, plain_function = torch.Tensor.softmax, nn.functional.softmax

    def softmax(scores, dim=-1, **kwargs):
        if not active:
            return plain_softmax(scores, dim, **kwargs)
        sizes = merging.backbone.key_sizes(merging.run.states[active[-1]], scores.transpose(-1, -2))
        return plain_softmax(scores + sizes.log()[:, None, None], dim, **kwargs)

    handles = []
    for number, block in enumerate(blocks):
        stage = sum(layer <= number for layer in merging.plan.merge_layers)
        attention = block.get_submodule(merging.backbone.attention)
        if stage:
            handles.append(attention.register_forward_pre_hook(lambda *_, stage=stage: active.append(stage)))
            handles.append(attention.register_forward_hook(lambda *_: active.pop() and None))
    torch.Tensor.softmax = softmax
    nn.functional.softmax = softmax
    try:
        assert_close_to_spread(logits(model, clip), expected)
    finally:
        torch.Tensor.softmax, nn.functional.softmax = plain_softmax, plain_function


@pytest.mark.parametrize("name", FAMILIES)
def test_a_clip_does_not_depend_on_its_batch_mates(name):
    model, clip = video_transformers.build(name), video_transformers.clip(name, batch=3)
    add_token_merging(model, keep_ratio=0.7)
    together = logits(model, clip)
    assert_close_to_spread(logits(model, clip.flip(0)), together.flip(0))
    assert_close_to_spread(logits(model, clip[1:2]), together[1:2])


@pytest.mark.parametrize("size_weight", [1.0, 0.0])
def test_merging_equal_tokens_loses_nothing_with_sizes_in_attention_and_mean(size_weight):
    """A still clip: the second frame of each pair merges into the first. Only part of the duplicates does."""
    model, clip = video_transformers.build("videomae"), video_transformers.clip("videomae")
    clip = clip[:, :1].expand(-1, 8, -1, -1, -1)
    positions = model.videomae.embeddings.position_embeddings
    model.videomae.embeddings.position_embeddings = positions[:, :16].repeat(1, 4, 1)
    before = logits(model, clip)
    add_token_merging(model, keep_ratio=0.8, merge_layers=[2], temporal_share=1.0, size_weight=size_weight)
    difference = (logits(model, clip) - before).abs().max()
    assert difference < 1e-5 if size_weight else difference > 1e-3


def test_a_plain_mean_of_merged_tokens_would_lose_something():
    model, clip = video_transformers.build("videomae"), video_transformers.clip("videomae")
    clip = clip[:, :1].expand(-1, 8, -1, -1, -1)
    positions = model.videomae.embeddings.position_embeddings
    model.videomae.embeddings.position_embeddings = positions[:, :16].repeat(1, 4, 1)
    before = logits(model, clip)
    # The base model alone is plugged: the classifier's mean stays as it is.
    add_token_merging(model.videomae, keep_ratio=0.8, merge_layers=[2], temporal_share=1.0, size_weight=1.0)
    assert (logits(model, clip) - before).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["pool", "tome", "random", "drop"])
@pytest.mark.parametrize("name", JOINT)
def test_the_other_methods_run_by_their_names(name, method):
    model, clip = video_transformers.build(name), video_transformers.clip(name)
    before = logits(model, clip)
    settings = {
        "pool": {"merge_layers": [2], "meta_grid": (1, 2, 4), "pool_windows": 2},
        "tome": {"merges_per_stage": 9, "merge_layers": [1, 2, 3, 4]},
        "random": {"keep_ratio": 0.75},
        "drop": {"keep_ratio": 0.75},
    }[method]
    add_token_merging(model, method=method, **settings)
    after = model(clip, output_hidden_states=True)
    assert after.logits.isfinite().all()
    assert (after.logits - before).abs().max() > 1e-4
    prefix = merging_of(model).backbone.prefix_tokens
    assert (
        after.hidden_states[-1].shape[1] - prefix == {"pool": 16, "tome": 64 - 4 * 9, "random": 27, "drop": 27}[method]
    )


@pytest.mark.parametrize("method", ["tube-random", "tube-drop"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in JOINT])
def test_baselines_of_a_tube_leave_as_many_tokens_as_the_tube(name, method):
    model, clip = video_transformers.build(name), video_transformers.clip(name)
    before = logits(model, clip)
    add_token_merging(model, keep_ratio=0.75)
    expected = model(clip, output_hidden_states=True)
    remove_token_merging(model)
    add_token_merging(model, keep_ratio=0.75, method=method)
    found = model(clip, output_hidden_states=True)
    assert [state.shape for state in found.hidden_states] == [state.shape for state in expected.hidden_states]
    assert (found.logits - before).abs().max() > 1e-4
    assert (found.logits - expected.logits).abs().max() > 1e-4


# --- families ---


def test_vjepa2_rotates_by_centroids_and_equals_its_own_rotation_on_the_grid():
    model, clip = video_transformers.build("vjepa2"), video_transformers.clip("vjepa2")
    attention = model.vjepa2.encoder.layer[3].attention
    own = attention.get_position_ids(torch.empty(2, 64, 24))
    add_token_merging(model, keep_ratio=0.75)
    seen = []
    model.vjepa2.encoder.layer[3].attention.query.register_forward_hook(
        lambda *_: seen.append(attention.get_position_ids(torch.empty(2, 27, 24)))
    )
    model(clip)
    assert [axis.shape for axis in seen[0]] == [(2, 1, 27)] * 3
    # floats on the integer grid rotate as the model's own integers do
    keys = torch.randn(2, 2, 64, 12)
    floats = tuple(axis.float().expand(2, 1, 64) for axis in own)
    assert torch.equal(attention.apply_rotary_embeddings(keys, floats), attention.apply_rotary_embeddings(keys, own))
    # the centroids weighted by size are those of the whole grid
    merging = merging_of(model)
    add_token_merging(remove_token_merging(model), keep_ratio=0.75)
    merging = merging_of(model)
    states = []
    model.vjepa2.register_forward_hook(lambda *_: states.append(merging.run.states[-1]))
    model(clip)
    state = states[0]
    mean = (state.positions * state.sizes[..., None]).sum(1) / state.sizes.sum(1, keepdim=True)
    torch.testing.assert_close(mean, torch.tensor([[1.5, 1.5, 1.5]] * 2))


def test_timesformer_tokens_survive_the_way_to_frames_and_back():
    family = VIDEO_TRANSFORMERS["TimesformerModel"]
    hidden = torch.arange(2 * 13 * 3.0).view(2, 13, 3)
    prefix, tokens = family.split(hidden, (4, 3, 1))
    assert torch.equal(tokens[0, :3], hidden[0, 1::4])  # the first frame: one token of each place
    assert torch.equal(family.join(prefix, tokens, (4, 3, 1)), hidden)


@pytest.mark.parametrize("level", [1, 2, None, "joint"])
def test_keys_of_laps_come_back_frame_by_frame(level):
    """A key that tells its frame and place, sent through the grouping of the attention."""
    scope = "joint" if level == "joint" else "leap"
    model = video_transformers.build("laps", leap_levels=(1 if level == "joint" else level,), attention_scope=scope)
    attention = model.laps.backbone.blocks[0].attention
    attention.qkv = nn.Identity()
    seen = []
    attention.qkv.register_forward_hook(lambda module, args, output: seen.append(output))
    numbers = torch.arange(2 * 4 * 17.0).view(8, 17, 1).expand(-1, -1, 24)
    with pytest.raises(RuntimeError):
        attention(numbers, 4)  # an identity has too few channels for queries, keys and values
    keys = VIDEO_TRANSFORMERS["LAPSModel"].key_tokens(attention, seen[0], (4, 4, 4))
    expected = numbers[:, 1:].reshape(2, 64, 24)
    assert torch.equal(keys, expected)


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_videomae_with_and_without_mean_pooling(use_mean_pooling):
    model = video_transformers.build("videomae", use_mean_pooling=use_mean_pooling)
    clip = video_transformers.clip("videomae")
    add_token_merging(model, keep_ratio=0.6)
    states = []
    model.videomae.register_forward_hook(lambda *_: states.append(merging_of(model).run.states[-1]))
    assert logits(model, clip).isfinite().all()
    # the head without a mean reads token 0: the first patch is in it whatever merged
    assert (states[0].source[:, 0] == 0).all()


# --- training ---


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointed_blocks_give_the_same_gradients_also_after_another_forward_pass(name):
    clips = [video_transformers.clip(name), video_transformers.clip(name).flip(1) * 2]
    gradients = []
    for checkpointing in (False, True):
        model = video_transformers.build(name)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        add_token_merging(model, keep_ratio=0.7, size_weight=1.0)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        first, second = (model(clip, labels=torch.tensor([1, 2])).loss for clip in clips)
        (first + 2 * second).backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert_gradients_close(gradients[1], gradients[0])


def test_a_copy_of_a_plugged_model_merges_by_itself():
    model, clip = video_transformers.build("vivit"), video_transformers.clip("vivit")
    add_token_merging(model, keep_ratio=0.7)
    other = copy.deepcopy(model)
    expected = logits(model, clip)
    assert_close_to_spread(logits(other, clip), expected)
    remove_token_merging(model)
    assert_close_to_spread(logits(other, clip), expected)
    assert merging_of(other).base is other.vivit


def test_nothing_of_a_clip_is_kept_after_the_forward_pass_nor_after_an_error():
    model, clip = video_transformers.build("videomae"), video_transformers.clip("videomae")
    add_token_merging(model, keep_ratio=0.7)
    logits(model, clip)
    assert merging_of(model).run is None
    classify = model.classifier.forward
    model.classifier.forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model(clip)
    assert merging_of(model).run is None

    def interrupt(*_):
        raise KeyboardInterrupt  # which passes the hooks that follow an error

    model.classifier.forward = interrupt
    with pytest.raises(KeyboardInterrupt):
        model(clip)
    model.classifier.forward = classify
    logits(model, clip)
    assert merging_of(model).run is None


def test_a_plugged_model_compiles_once_for_all_batches_of_a_size():
    torch._dynamo.reset()
    model = video_transformers.build("vivit")
    add_token_merging(model, keep_ratio=0.7)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for scale in (1.0, 0.3):
        clip = scale * video_transformers.clip("vivit")
        assert_close_to_spread(logits(compiled, clip), logits(model, clip))
    assert len(graphs) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_stays_close_when_the_same_tokens_merge(name):
    """Which tokens merge may flip in half precision; where pairs of equal tokens merge it cannot matter."""
    model, clip = video_transformers.build(name), video_transformers.clip(name)
    add_token_merging(model, keep_ratio=0.75)
    full = logits(model, clip)
    with unfused_attention():
        half = logits(model.to(torch.bfloat16), clip.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() < 0.5 * full.std() + 0.1


# --- cost ---

# FlopCounterMode / 2 on the meta device; G multiply-accumulates of backbone, -38 % setting, its lengths
COSTS = {
    "VideoMAE-B": (VideoMAEForVideoClassification, VideoMAEConfig(), 180.34, 0.72, 110.57, (1128, 812, 585)),
    "ViViT-B": (VivitForVideoClassification, VivitConfig(), 451.52, 0.75, 279.19, (2352, 1764, 1324)),
    "TimeSformer-B": (TimesformerForVideoClassification, TimesformerConfig(), 195.83, 0.69, 121.38, (1080, 744, 512)),
    "V-JEPA2-L 64": (VJEPA2ForVideoClassification, VJEPA2Config(), 5785.3, 0.77, 3530.9, (6304, 4856, 3740)),
    "V-JEPA2-L 16": (
        VJEPA2ForVideoClassification, VJEPA2Config(frames_per_clip=16), 827.85, 0.72, 506.87, (1476, 1064, 766)
    ),
    "VideoPrism-B": (
        VideoPrismForVideoClassification, VideoPrismVisionConfig(), 486.64, 0.75, 299.91, (3072, 2304, 1728)
    ),
    "XViT-B": (XViTForVideoClassification, XViTConfig(), 281.01, 0.69, 174.19, (2160, 1488, 1024)),
    "LAPS-ViT-B": (LAPSForVideoClassification, LAPSConfig(backbone="vit"), 146.23, 0.69, 89.69, (1080, 744, 512)),
}  # fmt: skip


def counted_macs(model: nn.Module, clip: torch.Tensor) -> dict[str, float]:
    """G multiply-accumulates, of all and of parts by name."""
    model.requires_grad_(
        False
    )  # no_grad() is not enough for the counter where a parameter enters a layer, as a query does
    with FlopCounterMode(display=False) as counter:
        model(clip)
    return {name: sum(flops.values()) / 2e9 for name, flops in counter.get_flop_counts().items()}


@pytest.mark.parametrize("name", COSTS)
def test_multiply_accumulates_of_the_real_module_are_within_one_percent_of_the_table(name):
    model_class, config, full, keep, merged, lengths = COSTS[name]
    plan = plan_merging(config)
    family = next(family for family in VIDEO_TRANSFORMERS.values() if family.model_type == config.model_type)
    size = family.clip_size(config)
    assert plan.keep_ratio == keep
    assert tuple(budget.length_out for budget in plan.budgets(family.grid(config, size))) == lengths
    assert multiply_accumulates(config) / 1e9 == pytest.approx(full, rel=1e-4)
    assert multiply_accumulates(config, plan) / 1e9 == pytest.approx(merged, rel=1e-4)

    with torch.device("meta"):
        model = model_class(config).eval()
        clip = torch.empty(1, size[0], 3, *size[1:])
    base = type(find_video_transformer(model)).__name__

    def backbone(counts):
        return counts.get(f"{type(model).__name__}.{model.base_model_prefix}", counts["Global"])

    untouched = backbone(counted_macs(model, clip))
    # without the size channel of attention, which the table does not count
    add_token_merging(model, size_weight=0.0)
    cut = backbone(counted_macs(model, clip))
    assert untouched == pytest.approx(full, rel=0.01), base
    assert cut == pytest.approx(merged, rel=0.01), base


def test_the_size_channel_costs_what_the_page_says():
    with torch.device("meta"):
        model = VivitForVideoClassification(VivitConfig()).eval()
        clip = torch.empty(1, 32, 3, 224, 224)
    add_token_merging(model, size_weight=0.0)
    without = counted_macs(model, clip)["Global"]
    add_token_merging(remove_token_merging(model))
    assert counted_macs(model, clip)["Global"] / without == pytest.approx(1.0215, abs=0.001)


# --- what is refused ---

BAD_SETTINGS = {
    "keep 0": ({"keep_ratio": 0.0}, r"keep_ratio is the share .* got 0"),
    "keep above 1": ({"keep_ratio": 1.2}, r"in \(0, 1\]; got 1.2"),
    "more merges than tokens": ({"keep_ratio": 0.1}, r"asks for 58 merges among 64 tokens"),
    "layer 0": ({"merge_layers": [0, 2]}, r"from 1 to 4 here; got \[0\]"),
    "layer that does not exist": ({"merge_layers": [2, 9]}, r"from 1 to 4 here; got \[9\]"),
    "layers out of order": ({"merge_layers": [3, 2]}, r"rising order"),
    "no layers": ({"merge_layers": []}, r"rising order"),
    "unknown method": ({"method": "glue"}, r"give one of \('match', 'pool', 'tome', 'random', 'drop'\)"),
    "tube on joint attention": ({"method": "tube"}, r"cannot merge the tokens of a videomae"),
    "share": ({"temporal_share": 1.5}, r"temporal_share"),
    "top_q": ({"top_q": 0}, r"top_q"),
    "temperature": ({"temperature": 0.0}, r"temperature must be above 0"),
    "pool without windows": ({"method": "pool", "merge_layers": [2]}, r"give pool_windows"),
    "pool twice": ({"method": "pool", "pool_windows": 2}, r"merges once"),
    "windows of match": ({"pool_windows": 2}, r"setting of method='pool'"),
    "constant merges of match": ({"merges_per_stage": 9}, r"is for the methods \('tome', 'random', 'drop'\)"),
    "fine meta tokens": ({"meta_weight": 0.1, "meta_grid": (2, 8, 8)}, r"does not fit the \(4, 4, 4\) grid"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_refused_and_leave_the_model_alone(case):
    settings, message = BAD_SETTINGS[case]
    model = video_transformers.build("videomae")
    parts = hooks_and_views(model)
    with pytest.raises(ValueError, match=message):
        add_token_merging(model, **settings)
    assert hooks_and_views(model) == parts


def test_groups_that_cannot_pair_merge_in_space_alone():
    model = video_transformers.build("videomae", num_frames=6)
    plan = plan_merging(model.config, MergeOptions(keep_ratio=0.75))
    budgets = plan.budgets((3, 4, 4))
    assert [(budget.groups_out, budget.temporal) for budget in budgets] == [(3, 0)] * 3
    add_token_merging(model, keep_ratio=0.75)
    assert logits(model, torch.randn(1, 6, 3, 32, 32)).isfinite().all()


def test_models_that_cannot_merge_are_refused_with_the_reason():
    tps = TPSForVideoClassification(
        TPSConfig(image_size=32, num_frames=4, embed_dim=16, depths=(1,), num_heads=(2,), window_size=4)
    )
    with pytest.raises(ValueError, match="windows need whole maps"):
        add_token_merging(tps)
    with pytest.raises(ValueError, match="convolutions need whole maps"):
        add_token_merging(LAPSForVideoClassification(LAPSConfig(depths=(1, 1, 1))))
    with pytest.raises(ValueError, match="summary_token"):
        add_token_merging(video_transformers.build("xvit", summary_token=True))
    with pytest.raises(ValueError, match="divided_space_time"):
        add_token_merging(video_transformers.build("timesformer", attention_type="joint_space_time"))
    with pytest.raises(ValueError, match="Linear is or has none of them"):
        add_token_merging(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="has 2 of them"):
        add_token_merging(nn.ModuleList([video_transformers.build("vivit"), video_transformers.build("videomae")]))


def test_plugging_twice_and_removing_nothing_are_refused():
    model = video_transformers.build("videomae")
    with pytest.raises(ValueError, match="nothing to remove"):
        remove_token_merging(model)
    add_token_merging(model)
    parts = hooks_and_views(model)
    with pytest.raises(ValueError, match="merges tokens already"):
        add_token_merging(model)
    assert hooks_and_views(model) == parts


def test_calls_that_merged_tokens_cannot_serve_are_refused():
    videomae = add_token_merging(
        VideoMAEModel(video_transformers.MODELS["videomae"][1](**video_transformers.MODELS["videomae"][2]))
    )
    with pytest.raises(ValueError, match="bool_masked_pos"):
        videomae(video_transformers.clip("videomae"), bool_masked_pos=torch.zeros(2, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"these clips have \(3, 4, 4\)"):
        videomae(torch.randn(1, 6, 3, 32, 32))
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
        videomae(torch.randn(3, 32, 32))
    vjepa2 = add_token_merging(
        VJEPA2Model(video_transformers.MODELS["vjepa2"][1](**video_transformers.MODELS["vjepa2"][2]))
    )
    clip = video_transformers.clip("vjepa2")
    with pytest.raises(ValueError, match="skip_predictor=True"):
        vjepa2(clip)
    assert vjepa2(clip, skip_predictor=True).last_hidden_state.shape[1] < 64
    with pytest.raises(ValueError, match=r"these clips have \(4, 8, 8\)"):
        vjepa2(torch.randn(1, 8, 3, 64, 64), skip_predictor=True)
    vivit = add_token_merging(video_transformers.build("vivit"))
    with pytest.raises(ValueError, match="attention_mask"):
        vivit.vivit(video_transformers.clip("vivit"), attention_mask=torch.ones(2, 65))
    with pytest.raises(ValueError, match=r"these clips have \(4, 6, 6\)"):
        vivit(torch.randn(1, 8, 3, 48, 48))
