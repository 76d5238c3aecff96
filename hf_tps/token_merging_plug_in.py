# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Token merging for a video transformer that is already there: plan it, plug it in, take it out again.

    model = AutoModelForVideoClassification.from_pretrained("MCG-NJU/videomae-base-finetuned-kinetics")
    add_token_merging(model)  # about 38 % fewer multiply-accumulates
    logits = model(clips).logits
    remove_token_merging(model)

Tokens are merged AFTER a block, by a hook on it; what they are compared by are the keys of that block's attention,
before rotary embedding, from a hook that follows their projection (`plug.py`). The blocks behind it read fewer tokens,
and their attention is told how many of the clip's tokens each one stands for (`size_aware_attention.py`). What is
particular to a model stands in `token_merging_backbones.py`.

What belongs to one call is kept with the thread that makes it, so that one model serves several threads.
"""

import inspect
import math
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig

from .attention_plug import plug_into_attention
from .plug import PLUG_LOCK, Plug, find_in_table, find_one_in_table
from .size_aware_attention import SizeAwareAttention
from .token_merging import (
    BASELINES,
    TUBE_METHODS,
    MergeBudget,
    MergeSettings,
    MergeState,
    constant_budgets,
    merge_budgets,
    merge_tokens,
    metric_from_keys,
    motion_features,
    pool_budget,
    size_weighted_mean,
    start_merging,
)
from .token_merging_backbones import CANNOT_MERGE, VIDEO_TRANSFORMERS, Grid, VideoBackbone, backbone_of_config

# The cut that STTM reports at similar accuracy; `keep_ratio=None` aims at it.
DEFAULT_CUT = 0.38
HANDLES = "_token_merging"  # the plug, on the base model while it is in


# --- the plan: everything that is decided before the first clip -------------------------------------------------------


@dataclass(kw_only=True, repr=False, eq=False)  # STTMConfig has those of Transformers
class MergeOptions:
    """Everything that can be chosen of a merging model. `STTMConfig` has these fields, `add_token_merging` these
    parameters.

    Args:
        merge_layers (`tuple` of ints, *optional*):
            Tokens merge after so many blocks. None: after a quarter, a half and three quarters of them; (3, 6, 9) of
                12.
        keep_ratio (`float`, *optional*):
            Share of the tokens that each stage keeps, in (0, 1]. None: the largest, in hundredths, that saves 38 % of
            the multiply-accumulates (VideoMAE-B: 0.72).
        method (`str`, *optional*):
            "match" merges the most similar tokens in space, then in time; "tube" gives all frames the same merges.
            None: the one that fits the model (see `token_merging_backbones.py`). "pool" puts all tokens into global
            meta tokens, once, and needs training. "tome", "random" and "drop" are baselines, "tube-random" and
            "tube-drop" those of "tube".
        temporal_share (`float`, defaults to 0.5):
            Share of the merges of "match" that join frames, in [0, 1]. Frames pair while their number is even.
        merges_per_stage (`int`, *optional*):
            Of "tome", "random" and "drop", in place of `keep_ratio`: the same number of merges at each of
                `merge_layers`.
        size_weight (`float`, *optional*):
            alpha: attention logits get alpha * log(size of the key). None: the model's (VideoMAE and V-JEPA 2, which
            were trained with missing tokens, 0; the others 1). The poolers of V-JEPA 2 and VideoPrism always have 1.
        pool_windows (`int`, *optional*):
            Of "pool": windows of frames that are fused; `pool_windows` times the cells of `meta_grid` tokens are left.
        top_q (`int`, defaults to 1):
            Receivers that share a moving token, by softmax with `temperature` (`float`, defaults to 0.05). 4 is meant
            for training, and then for evaluation too.
        meta_weight (`float`, defaults to 0.0):
            eta: weight of the agreement on global meta tokens. These start from the cells of `meta_grid` (`tuple`,
            defaults to (2, 4, 4), over time, rows, columns) and take `meta_rounds` (`int`, defaults to 2) rounds of
            soft k-means with `meta_temperature` (`float`, defaults to 0.1).
    """

    merge_layers: list[int] | tuple[int, ...] | None = None
    keep_ratio: float | int | None = None
    method: str | None = None
    temporal_share: float | int = 0.5
    merges_per_stage: int | None = None
    size_weight: float | int | None = None
    pool_windows: int | None = None
    top_q: int = 1
    temperature: float | int = 0.05
    meta_weight: float | int = 0.0
    meta_grid: list[int] | tuple[int, ...] = (2, 4, 4)
    meta_rounds: int = 2
    meta_temperature: float | int = 0.1

    def check_options(self) -> None:
        """Check what can be said without a model.

        Raises:
            ValueError: for options out of range, or meant for another method.
        """
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ValueError(
                f"keep_ratio is the share of tokens that stay at each stage, in (0, 1]; got {self.keep_ratio}."
            )
        if not 0 <= self.temporal_share <= 1:
            raise ValueError(
                f"temporal_share is the share of the merges done over time, in [0, 1]; got {self.temporal_share}."
            )
        if not isinstance(self.top_q, int) or self.top_q < 1:
            raise ValueError(f"top_q is the number of receivers of a moving token, at least 1; got {self.top_q!r}.")
        for name in ("temperature", "meta_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.meta_rounds < 0:
            raise ValueError(f"meta_rounds must be 0 or more, got {self.meta_rounds}.")
        if self.method == "pool" and (self.keep_ratio is not None or self.pool_windows is None):
            raise ValueError(
                "method='pool' keeps pool_windows * (cells of meta_grid) tokens: give pool_windows, and no keep_ratio."
            )
        if self.method != "pool" and self.pool_windows is not None:
            raise ValueError(f"pool_windows is a setting of method='pool', not of {self.method!r}.")
        with_constant_merges = tuple(baseline for baseline in BASELINES if baseline not in TUBE_METHODS)
        if self.merges_per_stage is not None and (
            self.method not in with_constant_merges or self.keep_ratio is not None
        ):
            raise ValueError(f"merges_per_stage is for the methods {with_constant_merges}, in place of keep_ratio.")

    def merge_settings(self) -> MergeSettings:
        frames, rows, columns = self.meta_grid
        return MergeSettings(
            self.top_q,
            self.temperature,
            self.meta_weight,
            (frames, rows, columns),
            self.meta_rounds,
            self.meta_temperature,
        )


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
        """What each stage does to a clip of this grid.

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


def check_merge_layers(merge_layers: Sequence[int] | None, num_blocks: int) -> tuple[int, ...]:
    """The blocks after which tokens merge, counted from 1."""
    numbers = quarter_points(num_blocks) if merge_layers is None else tuple(merge_layers)
    if not numbers or list(numbers) != sorted(set(numbers)):
        raise ValueError(f"merge_layers are different numbers in rising order; got {numbers}.")
    outside = [number for number in numbers if not isinstance(number, int) or not 1 <= number <= num_blocks]
    if outside:
        raise ValueError(
            f"merge_layers counts the blocks that come before each merge, from 1 to {num_blocks} here; got {outside}."
        )
    return numbers


def plan_merging(config: PreTrainedConfig, options: MergeOptions | None = None) -> MergePlan:
    """Fill in what a backbone has as default, and check everything against its config.

    Args:
        config: of the backbone.
        options: None: the defaults.

    Raises:
        ValueError: for a backbone that cannot merge, options out of range, layers that do not exist, more merges than a
            stage can do on the clips that the config is for.
    """
    backbone = backbone_of_config(config)
    options = MergeOptions() if options is None else options
    method = backbone.topology if options.method is None else options.method
    if method not in backbone.methods:
        raise ValueError(
            f"method={method!r} cannot merge the tokens of a {config.model_type}: give one of {backbone.methods}."
        )
    merge_layers = check_merge_layers(options.merge_layers, backbone.num_blocks(config))
    if method == "pool" and len(merge_layers) != 1:
        raise ValueError(f"method='pool' merges once: give one merge layer, not {merge_layers}.")
    options.check_options()
    plan = MergePlan(
        method,
        merge_layers,
        options.keep_ratio,
        options.merges_per_stage,
        options.temporal_share,
        backbone.size_weight if options.size_weight is None else options.size_weight,
        options.pool_windows,
        options.merge_settings(),
    )
    if plan.keep_ratio is None and method != "pool" and plan.merges_per_stage is None:
        plan = plan._replace(keep_ratio=keep_ratio_for_cut(config, plan))
    grid = backbone.own_grid(config)
    # Also for meta tokens that only steer: their cells must not be finer than the tokens.
    if options.meta_weight and method != "pool":
        pool_budget(grid, plan.settings.meta_grid, 1)
    plan.budgets(grid)
    return plan


def multiply_accumulates(config: PreTrainedConfig, plan: MergePlan | None = None) -> int:
    """Multiply-accumulates of the patch embedding and the blocks on the clips that the config is for, by formula.

    Heads, poolers, the merging itself (under 0.1 %) and the size channel are not counted.

    Args:
        plan: None: the untouched model.
    """
    backbone = backbone_of_config(config)
    grid = backbone.own_grid(config)
    lengths = [math.prod(grid)]
    stages: tuple[int, ...] = ()
    if plan is not None:
        stages = plan.merge_layers
        lengths += [budget.length_out for budget in plan.budgets(grid)]
    # In a tube the frames stay apart; elsewhere a block does not ask where its tokens come from.
    frames = grid[0] if backbone.topology == "tube" else 1
    total = backbone.embedding_macs(config)
    for block in range(backbone.num_blocks(config)):
        total += backbone.block_macs(config, frames, lengths[stages_before(stages, block)] // frames)
    return total + backbone.macs_behind_blocks(config, frames, lengths[-1] // frames)


def stages_before(merge_layers: Sequence[int], block: int) -> int:
    """How often tokens have merged before block number `block`, counted from 0."""
    return sum(layer <= block for layer in merge_layers)


def keep_ratio_for_cut(config: PreTrainedConfig, plan: MergePlan, cut: float = DEFAULT_CUT) -> float:
    """The largest keep ratio, in hundredths, that saves at least the share `cut` of the multiply-accumulates.

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


# --- one call ---------------------------------------------------------------------------------------------------------


class MergeRun:
    """One forward pass: how its tokens stand before each stage and after the last."""

    def __init__(self, state: MergeState, plan: MergePlan, budgets: tuple[MergeBudget, ...]):
        self.states: list[MergeState] = [state] * (len(budgets) + 1)
        self.plan = plan
        self.budgets = budgets
        self.metric: torch.Tensor | None = None
        self.last_hidden_state: torch.Tensor | None = None

    def has_merged(self, stage: int) -> bool:
        return any(budget.length_out < budget.length_in for budget in self.budgets[:stage])


class Call:
    """A call of a plugged model that is going on. `run` comes when its base model begins."""

    def __init__(self, merging: "TokenMerging", of_base: bool):
        self.merging = merging
        self.of_base = of_base
        self.run: MergeRun | None = None


class ThreadCalls(threading.local):
    """What goes on in this thread: `calls` of plugged models, the innermost last; and for each of them the forward pass
    whose checkpointed blocks the backward pass computes again here. The graph of that forward pass keeps it alive.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.recomputed: dict[int, weakref.ref[MergeRun]] = {}


THREAD = ThreadCalls()


# --- the plug ---------------------------------------------------------------------------------------------------------


class TokenMerging(Plug):
    """Token merging in one model.

    Args:
        base: the base model.
        plan: how it merges.
        learned: a module for each stage with what it has learned (`metric`, `gate`, `motion`, `size_weight`,
            `meta_weight`, each None if it has not), or None for each.
    """

    def __init__(self, base: nn.Module, plan: MergePlan, learned: Sequence[nn.Module | None]):
        super().__init__()
        self.base = base
        self.backbone = backbone_of(base)
        self.plan = plan
        self.learned = list(learned)
        self.last_stage = len(plan.merge_layers)
        self.remember_last_hidden_state = False

    def plug(self, model: nn.Module) -> None:
        base, backbone = self.base, self.backbone
        if model is not base:
            self.before(model, self.begin)
        self.before(base, self.begin_base, with_kwargs=True)
        blocks = base.get_submodule(backbone.blocks)
        for stage, layer in enumerate(self.plan.merge_layers):
            block = blocks[layer - 1]
            attention = block.get_submodule(backbone.attention)
            self.follow(attention, backbone.key_projection, partial(self.keep_metric, stage, attention))
            # Ahead of other hooks, which are to see what the next block sees.
            self.after(block, partial(self.merge, stage), prepend=True)
        for number, block in enumerate(blocks):
            if stage := stages_before(self.plan.merge_layers, number):
                backbone.plug_attention(self, block, stage)
                backbone.plug_block(self, block, stage)
        backbone.plug_head(self, model)
        self.after(base, self.end_base, always_call=True)
        if model is not base:
            self.after(model, self.end, always_call=True)
        setattr(base, HANDLES, self)

    def unplug(self) -> None:
        super().unplug()
        delattr(self.base, HANDLES)

    def let_see_sizes(self, attention: nn.Module, stage: int, strength: float | None = None) -> None:
        """Tell an attention behind `stage` merges the sizes of its keys. `strength`: None for alpha."""
        sized = SizeAwareAttention(self, stage, strength, self.backbone.sizes_as_mask)
        plug_into_attention(self, attention, sized)

    # what others ask of the current call

    @property
    def run(self) -> MergeRun | None:
        """The forward pass that this thread is in, or computes again."""
        for call in reversed(THREAD.calls):
            if call.merging is self:
                return call.run
        if torch.compiler.is_compiling():
            return None
        recomputed = THREAD.recomputed.get(id(self))
        return None if recomputed is None else recomputed()

    def state_at(self, stage: int, device: torch.device) -> MergeState:
        """The tokens behind `stage` merges; `tokens` is empty."""
        state = self.run.states[stage]
        if state.sizes.device == device:
            return state
        tensors = {name: part.to(device) for name, part in state._asdict().items() if isinstance(part, torch.Tensor)}
        return state._replace(**tensors)

    def has_merged(self, stage: int) -> bool:
        run = self.run
        return run is not None and run.has_merged(stage)

    def strength(self, stage: int) -> float | torch.Tensor:
        """alpha of the blocks behind `stage` merges."""
        learned = self.learned[stage - 1]
        return self.plan.size_weight if learned is None or learned.size_weight is None else learned.size_weight

    def sees_sizes(self, stage: int, strength: float | torch.Tensor) -> bool:
        """Whether sizes change the attention behind `stage` merges; a strength that is learned always may."""
        return self.has_merged(stage) and (isinstance(strength, torch.Tensor) or strength != 0)

    def key_sizes(self, stage: int, key: torch.Tensor) -> torch.Tensor:
        return self.backbone.key_sizes(self.state_at(stage, key.device), key)

    # hooks on the model and its base: from the beginning of a call to its end

    def begin(self, module: nn.Module, args: tuple) -> None:
        """Of the model that was plugged, where it is not the base model itself."""
        while THREAD.calls and THREAD.calls[-1].merging is self:  # a call that an interrupt broke off
            THREAD.calls.pop()
        THREAD.calls.append(Call(self, of_base=False))

    def begin_base(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not THREAD.calls or THREAD.calls[-1].merging is not self:
            THREAD.calls.append(Call(self, of_base=True))
        names = list(signature_of(type(module)))
        arguments = {**dict(zip(names[: len(args)], args, strict=True)), **kwargs}
        clip = arguments.get(module.main_input_name)
        if clip is None:
            return  # the model refuses that itself
        if clip.ndim != 5:
            raise ValueError(
                f"{type(module).__name__} takes (batch, num_frames, channels, height, width); got {tuple(clip.shape)}."
            )
        self.check_checkpointing()
        frames, _, height, width = clip.shape[1:]
        grid = self.backbone.grid(module.config, (frames, height, width))
        self.backbone.check_call(module.config, grid, arguments)
        empty = clip.new_empty((clip.shape[0], math.prod(grid), 0))
        THREAD.calls[-1].run = MergeRun(start_merging(empty, grid), self.plan, self.plan.budgets(grid))

    def end_base(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Also after an error."""
        if not THREAD.calls or THREAD.calls[-1].merging is not self:
            return
        call = THREAD.calls[-1]
        if call.run is not None and output is not None:
            last = output[0]
            self.keep_run_for_backward(last)
            if self.remember_last_hidden_state:
                call.run.last_hidden_state = last
        if call.of_base:
            THREAD.calls.pop()

    def end(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Of the model that was plugged, after everything: also after an error."""
        if not THREAD.calls or THREAD.calls[-1].merging is not self:
            return
        if THREAD.calls[-1].run is not None and output is not None:
            # A head may be checkpointed as well.
            answers = (output,) if isinstance(output, torch.Tensor) else output
            for answer in answers.values() if isinstance(answers, dict) else answers:
                if isinstance(answer, torch.Tensor):
                    self.keep_run_for_backward(answer)
        THREAD.calls.pop()

    # hooks on the blocks

    def keep_metric(
        self, stage: int, attention: nn.Module, module: nn.Module, args: tuple, output: torch.Tensor
    ) -> None:
        """Of the key projection: what the tokens of this block are compared by."""
        run, learned = self.run, self.learned[stage]
        if run is None or run.budgets[stage].length_out == run.budgets[stage].length_in:
            return
        if learned is not None and learned.metric is not None:
            metric = learned.metric(args[0])
        else:
            # A hard choice has no gradient.
            keys = output.detach() if run.plan.settings.top_q == 1 else output
            keys = keys.chunk(3, dim=-1)[1] if self.backbone.fused_projection else keys
            metric = metric_from_keys(keys.unflatten(-1, (self.base.config.num_attention_heads, -1)).transpose(1, 2))
        run.metric = self.backbone.key_tokens(attention, metric, run.states[stage].grid)

    def merge(self, stage: int, module: nn.Module, args: tuple, output: Any) -> Any:
        """Of a block, after it."""
        run = self.run
        if run is None:
            return None
        state, budget = run.states[stage], run.budgets[stage]
        if budget.length_out == budget.length_in:
            run.states[stage + 1] = state._replace(groups=budget.groups_out)
            return None
        hidden_states = output[0] if isinstance(output, tuple) else output
        prefix, tokens = self.backbone.split(hidden_states, state.grid)
        state = self.state_at(stage, tokens.device)._replace(tokens=tokens)
        learned, settings, gate = self.learned[stage], run.plan.settings, None
        if learned is not None and learned.meta_weight is not None:
            settings = settings._replace(meta_weight=learned.meta_weight)
        if learned is not None and learned.gate is not None:
            gate = learned.gate(tokens).squeeze(-1)
        metric, run.metric = run.metric, None
        state = merge_tokens(state, metric, budget, settings, run.plan.method, gate)
        merged = state.tokens
        if learned is not None and learned.motion is not None:
            merged = merged + learned.motion(motion_features(state).to(merged.dtype))
        run.states[stage + 1] = state._replace(tokens=merged[..., :0].detach())
        merged = self.backbone.join(prefix, merged, state.grid)
        self.keep_run_for_backward(merged)
        return (merged, *output[1:]) if isinstance(output, tuple) else merged

    # hooks on what reads merged tokens

    def weigh_mean(self, module: nn.Module, args: tuple) -> tuple | None:
        """Before the norm of a mean over tokens: the mean over the original tokens instead."""
        if not self.has_merged(self.last_stage):
            return None
        last = self.run.last_hidden_state
        return (size_weighted_mean(last, self.state_at(self.last_stage, last.device).sizes), *args[1:])

    def weigh_probabilities(self, stage: int, module: nn.Module, args: tuple) -> tuple | None:
        """Before the dropout of attention weights (groups, heads, queries, keys): each key counts `size` times."""
        strength = self.strength(stage)
        if not self.sees_sizes(stage, strength):
            return None
        probabilities = args[0]
        # key_sizes reads the number of groups and keys from the shape of keys
        sizes = self.key_sizes(stage, probabilities.transpose(-1, -2))
        weighed = probabilities * (sizes**strength)[:, None, None]
        return (weighed / weighed.sum(dim=-1, keepdim=True)).to(probabilities.dtype), *args[1:]

    # gradient checkpointing

    def checkpointing_function(self) -> Callable | None:
        """What computes the blocks again in the backward pass, if something does."""
        block = self.base.get_submodule(self.backbone.blocks)[0]
        if not self.base.training or not getattr(block, "gradient_checkpointing", False):
            return None
        return block._gradient_checkpointing_func

    def check_checkpointing(self) -> None:
        """Raises:
        ValueError: for reentrant checkpointing where sizes have a gradient: it cuts the graph between the blocks,
            through which the sizes of merged tokens pass beside the hidden states.
        """
        function = self.checkpointing_function()
        if function is None or not (getattr(function, "keywords", None) or {}).get("use_reentrant", False):
            return
        if self.plan.settings.top_q > 1 or self.plan.method == "pool" or any(self.learned):
            raise ValueError(
                "Reentrant gradient checkpointing would lose gradients of merged tokens where something of the merging "
                "is "
                "learned or top_q is above 1: call gradient_checkpointing_enable({'use_reentrant': False})."
            )

    def keep_run_for_backward(self, hidden_states: torch.Tensor) -> None:
        """Checkpointed blocks are computed again in the backward pass, after others maybe: with this forward pass."""
        if hidden_states.requires_grad and self.checkpointing_function() is not None:
            hidden_states.register_hook(partial(self.return_to_run, self.run))

    def return_to_run(self, run: MergeRun, gradient: torch.Tensor) -> None:
        THREAD.recomputed[id(self)] = weakref.ref(run)


def signature_of(model_class: type[nn.Module]) -> tuple[str, ...]:
    """Names of the arguments of `forward`, without self."""
    return tuple(inspect.signature(model_class.forward).parameters)[1:]


# --- in and out -------------------------------------------------------------------------------------------------------


def find_video_transformer(model: nn.Module) -> nn.Module:
    """The one base model of the table in `model`, which may be itself."""
    for module in model.modules():
        if getattr(getattr(module, "config", None), "model_type", None) in CANNOT_MERGE:
            backbone_of_config(module.config)  # says why
    return find_one_in_table(model, VIDEO_TRANSFORMERS, "Token merging")


def backbone_of(base: nn.Module) -> VideoBackbone:
    """What is known of a base model that `find_video_transformer` found."""
    return VIDEO_TRANSFORMERS[find_in_table(base, VIDEO_TRANSFORMERS)]


def check_layout(base: nn.Module, backbone: VideoBackbone) -> None:
    """The parts that the hooks ask for, by the names that Transformers 5.20 to 5.23 give them."""
    try:
        for block in base.get_submodule(backbone.blocks):
            block.get_submodule(backbone.attention).get_submodule(backbone.key_projection)
    except AttributeError as error:
        raise ValueError(
            f"This {type(base).__name__} has a layout that is not known here (known: Transformers 5.20 to 5.23): "
            f"{error}."
        ) from error


def plug_merging(model: nn.Module, plan: MergePlan, learned: Sequence[nn.Module | None] | None = None) -> TokenMerging:
    """Add token merging after a plan that was made from the config of the model's backbone.

    Raises:
        ValueError: for a model that cannot merge or is plugged already. The model is untouched then.
    """
    with PLUG_LOCK:
        base = find_video_transformer(model)
        if hasattr(base, HANDLES):
            raise ValueError("The model merges tokens already: remove_token_merging(model) comes first.")
        check_layout(base, backbone_of(base))
        merging = TokenMerging(base, plan, [None] * len(plan.merge_layers) if learned is None else learned)
        merging.plug(model)
    return merging


def add_token_merging(model: nn.Module, keep_ratio: float | None = None, **options: Any) -> nn.Module:
    """Let a video transformer merge similar tokens (STTM), without training.

    The model's outputs keep their form; `last_hidden_state`, and `hidden_states` behind a merge, have fewer tokens.
    Sizes and places of the tokens are outputs of `STTMModel`. Give the classifier rather than its base model where
    there is one: a head that takes a mean over tokens has to weigh it by size. With a keep ratio of 1 everything is as
        before, to the bit.

    Args:
        model: VideoMAEModel, VivitModel, TimesformerModel (divided space-time attention), VJEPA2Model,
            VideoPrismVisionModel of Transformers, XViTModel, LAPSModel (on ViT) of this package, or a model around one
            of them such as a classifier.
        keep_ratio: share of the tokens that each stage keeps, in (0, 1]; None: the largest, in hundredths, that saves
            38 % of the multiply-accumulates (VideoMAE-B: 0.72).
        options: the other fields of [`MergeOptions`].

    Returns:
        The model, changed in place.

    Raises:
        TypeError: for an option that `MergeOptions` does not have.
        ValueError: for a model that cannot merge or merges already, options out of range, layers that do not exist,
            more merges than there are tokens. The model is untouched then. Later, at a call: for what merged tokens
            cannot give (masked clips, V-JEPA 2's predictor) and clips too small for the plan.
    """
    base = find_video_transformer(model)
    plug_merging(model, plan_merging(base.config, MergeOptions(keep_ratio=keep_ratio, **options)))
    return model


# The parameters are the options themselves.
add_token_merging.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=nn.Module),
        *(
            inspect.Parameter(
                option.name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD
                if option.name == "keep_ratio"
                else inspect.Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=option.type,
            )
            for option in sorted(fields(MergeOptions), key=lambda option: option.name != "keep_ratio")
        ),
    ],
    return_annotation=nn.Module,
)


def remove_token_merging(model: nn.Module) -> nn.Module:
    """Undo `add_token_merging`: the model computes again what it computed before, to the bit.

    Returns:
        The model, changed in place.

    Raises:
        ValueError: if no token merging was added.
    """
    with PLUG_LOCK:
        base = find_video_transformer(model)
        if not hasattr(base, HANDLES):
            raise ValueError(f"This {type(base).__name__} does not merge tokens: there is nothing to remove.")
        getattr(base, HANDLES).unplug()
    return model


__all__ = ["add_token_merging", "remove_token_merging"]
