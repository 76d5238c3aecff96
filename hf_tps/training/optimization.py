"""Parameter groups, optimizer, schedule and moving average."""

import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_scheduler

NO_DECAY_RULES = ("standard", "positions", "head_biases", "none")
WARMUP_RULES = ("before", "multiply", "join")

_POSITIONS = re.compile(r"position|class_token|cls_token|temporal_embedding|bias_table|sttm_")
# The classifier and the layers before it that XViT's release calls `mlp_head`
_HEAD_BIASES = re.compile(r"^classifier\.bias$|temporal_head\.(norm|dense)\.bias$")
_BLOCK = re.compile(r"^(.*?\b(?:layers?|blocks)\.\d+(?:\.blocks\.\d+)?)\.")
_STAGE_BLOCK = re.compile(r"^(.*?\bstages?\.?\d+\.(?:blocks|layers)\.\d+)\.")


def decays(name: str, parameter: torch.Tensor, rule: str) -> bool:
    """Whether weight decay holds for a parameter.

    Args:
        rule: "standard" spares biases, norms (all that is 1-D), position embeddings, bias tables and class tokens;
            "positions" spares position embeddings, bias tables and class tokens only; "head_biases" the biases of the
            classifier and of the layers right before it (XViT's release); "none" spares nothing.

    Raises:
        ValueError: for another rule.
    """
    if rule not in NO_DECAY_RULES:
        raise ValueError(f"The rule for weight decay must be one of {NO_DECAY_RULES}, got {rule!r}.")
    if rule == "none":
        return True
    if rule == "head_biases":
        return not _HEAD_BIASES.search(name)
    if _POSITIONS.search(name):
        return False
    return rule == "positions" or parameter.ndim > 1


def layer_depths(names: Sequence[str], head: str = "classifier") -> dict[str, int]:
    """How deep each parameter lies: 0 for the embeddings, then one for each block, one more for what follows them."""
    blocks: dict[str, int] = {}
    depths: dict[str, int | None] = {}
    for name in names:
        match = _STAGE_BLOCK.match(name) or _BLOCK.match(name)
        if name.startswith(head):
            depths[name] = None
        elif match:
            depths[name] = blocks.setdefault(match[1], len(blocks) + 1)
        else:
            # patch merging and the like belong to the block before them
            depths[name] = len(blocks)
    return {name: len(blocks) + 1 if depth is None else depth for name, depth in depths.items()}


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    backbone_lr_multiplier: float = 1.0,
    layer_decay: float = 1.0,
    full_lr_names: Sequence[str] = (),
    no_decay: str = "standard",
    head: str = "classifier",
) -> list[dict]:
    """Groups of the trainable parameters, one for each pair of learning rate and weight decay.

    Args:
        model: its head is called `classifier` in all families.
        learning_rate, weight_decay: of the head.
        backbone_lr_multiplier: for all that is not the head.
        layer_decay: the rate falls by this factor with each block away from the head.
        full_lr_names: parameters whose name contains one of these keep the head's rate.
        no_decay: see `decays`.

    Raises:
        ValueError: if a multiplier is out of range, nothing is trainable, or a name of `full_lr_names` matches nothing.
    """
    for setting, value in (("backbone_lr_multiplier", backbone_lr_multiplier), ("layer_decay", layer_decay)):
        if not 0 < value <= 1:
            raise ValueError(f"{setting} must lie in (0, 1], got {value}.")
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("The model has no trainable parameters.")
    unmatched = [part for part in full_lr_names if not any(part in name for name, _ in named)]
    if unmatched:
        raise ValueError(f"No parameter's name contains {unmatched}; see model.named_parameters().")
    depths = layer_depths([name for name, _ in named], head)
    top = max(depths.values())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        rate = learning_rate
        if not name.startswith(head) and not any(part in name for part in full_lr_names):
            rate *= backbone_lr_multiplier * layer_decay ** (top - depths[name])
        decay = weight_decay if decays(name, parameter, no_decay) else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


def make_optimizer(
    name: str,
    groups: list[dict],
    learning_rate: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.9,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """AdamW or SGD.

    Raises:
        ValueError: for another name.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov)
    raise ValueError(f"The optimizer must be 'adamw' or 'sgd', got {name!r}.")


def make_scheduler(
    name: str,
    optimizer: torch.optim.Optimizer,
    *,
    warmup_steps: int,
    total_steps: int,
    milestones: Sequence[int] = (),
    warmup_rule: str = "before",
    warmup_start_factor: float | None = None,
    update_every: int = 1,
) -> torch.optim.lr_scheduler.LRScheduler:
    """One of Transformers' schedules ("cosine", "linear", ...) with a linear warm-up, stepped once per optimizer step.

    "multistep" multiplies the rate by 0.1 at each of `milestones` (steps).

    Args:
        warmup_rule: "before": the schedule begins where the warm-up ends ("multistep": see "multiply"). The other two
            lay the warm-up over the beginning of a schedule that runs over all steps: "multiply" by a factor that grows
            to 1 (mmcv), or "join", a straight line to the schedule's rate at the end of the warm-up (SlowFast).
        warmup_start_factor: share of the rate that the warm-up begins at; None: 0 (multistep: 1 / (warmup_steps + 1)).
        update_every: steps between changes of the schedule; the warm-up changes the rate at every step.

    Raises:
        ValueError: for a schedule that Transformers does not have, an unknown rule, or a schedule that these settings
            cannot be laid over.
    """
    if warmup_rule not in WARMUP_RULES:
        raise ValueError(f"The rule for the warm-up must be one of {WARMUP_RULES}, got {warmup_rule!r}.")
    plain = (warmup_rule, warmup_start_factor, update_every) == ("before", None, 1)
    if plain and name != "multistep":
        return get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    if name == "multistep" and warmup_rule == "before":
        warmup_rule = "multiply"
    begins = warmup_steps if warmup_rule == "before" else 0
    schedule = _schedule_factor(name, total_steps - begins, milestones)
    start = warmup_start_factor
    if start is None:
        start = 1 / (warmup_steps + 1) if name == "multistep" else 0.0

    def factor(step: int) -> float:
        scheduled = schedule(max(step - begins, 0) // update_every * update_every)
        if step >= warmup_steps:
            return scheduled
        goal = schedule(warmup_steps) if warmup_rule == "join" else 1.0
        warm = start + (goal - start) * step / warmup_steps
        return warm * scheduled if warmup_rule == "multiply" else warm

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _schedule_factor(name: str, total_steps: int, milestones: Sequence[int]) -> Callable[[int], float]:
    """The factor of a schedule without a warm-up, by step."""
    if name == "multistep":
        return lambda step: math.pow(0.1, sum(step >= milestone for milestone in milestones))
    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(name, unused, num_warmup_steps=0, num_training_steps=total_steps)
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise ValueError(f"The schedule {name!r} is no function of the step, so no warm-up can be laid over it.")
    return scheduler.lr_lambdas[0]


def make_moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the parameters; buffers are those of the model.

    Raises:
        ValueError: for a decay that is not between 0 and 1.
    """
    if not 0 < decay < 1:
        raise ValueError(f"The decay of the moving average must lie between 0 and 1, got {decay}.")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.requires_grad_(False)
    return average.eval()
