"""Spatial-temporal token merging (STTM, doi 10.1145/3633781) as pure functions: fewer tokens, nothing of the clip lost.

The paper is closed access and has no code. Its abstract tells of meta tokens found in the clip, similarity of tokens
and meta tokens, fusion in space and in time, motion from the tokens' positions: all are here, but by default the
receivers come from a checkerboard, meta tokens have no weight and motion is off. The formulas are our own choice;
"choice" marks the places where another reading is as good.

One merging stage works on a `MergeState` and a metric (the attention keys): a spatial step inside every temporal group,
then a temporal step over adjacent pairs of groups. Both are the same primitive, `aggregate`: a size-weighted mean under
an assignment whose rows sum to 1, so that sizes, positions and features keep their totals. How many tokens move is
fixed by `merge_budgets` beforehand, therefore every shape is known before the first clip is read.

Sizes, positions, similarities and softmaxes are float32 at least, whatever the dtype of the tokens and under autocast.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

# Positions are compared in steps of 1/256 patch, as integers: centroids that differ by rounding alone stay equal, and
# with them the order of tokens, the colour of the checkerboard and the cell of the meta grid.
POSITION_STEPS = 256
# Bits per axis of a raster key: three axes of +-2048 patches and the colour above them fit into an int64.
POSITION_BITS = 20


class MergeState(NamedTuple):
    """The tokens of a batch of clips between two stages, L for each clip, stored by temporal groups."""

    tokens: torch.Tensor  # (batch, L, channels); a class token is kept aside by the caller
    sizes: torch.Tensor  # (batch, L) float32: how many original tokens are inside
    positions: torch.Tensor  # (batch, L, 3) float32: centroid (time, row, column) in patches
    anchors: torch.Tensor  # (batch, L, 3) float32: where the earliest members lie
    source: torch.Tensor  # (batch, original L) int64: the token that each original token is in now; -1: dropped
    groups: int  # temporal groups, L / groups tokens each
    grid: tuple[int, int, int]  # frames, rows, columns of the original tokens


class MergeBudget(NamedTuple):
    """What one stage does to the number of tokens."""

    length_in: int
    groups_in: int
    spatial: int  # tokens that move in every group
    temporal: int  # tokens that move in every pair of groups
    length_out: int
    groups_out: int


class MergeSettings(NamedTuple):
    """How a stage merges. The defaults need no training: the hard choice, no global meta tokens."""

    top_q: int = 1  # receivers that share a moving token; 1: it goes whole into the most similar one
    temperature: float = 0.05  # tau of the softmax over those receivers
    meta_weight: float | torch.Tensor = 0.0  # eta: weight of the agreement on global meta tokens; a tensor can learn
    meta_grid: tuple[int, int, int] = (2, 4, 4)  # cells over time, rows, columns that the global meta tokens start from
    meta_rounds: int = 2  # rounds of soft k-means
    meta_temperature: float = 0.1


TRAINING_FREE = MergeSettings()


class Assignment(NamedTuple):
    """A row-stochastic matrix from n to m = n - k tokens in each group, stored by what moves. Survivors keep their
    order.
    """

    survivors: torch.Tensor  # (batch, groups, m) int64: which of the n tokens stay
    movers: torch.Tensor  # (batch, groups, k) int64: which of the n tokens move
    targets: torch.Tensor  # (batch, groups, k, q) int64: into which of the m tokens, most similar first
    weights: torch.Tensor  # (batch, groups, k, q): in which shares; sums to 1 over q
    landing: torch.Tensor  # (batch, groups, n) int64: where each of the n tokens is found afterwards


# --- budgets: plain Python, once per configuration ---


def merge_budget(
    num_tokens: int, groups: int, keep_ratio: float, temporal_share: float = 0.5, pair_groups: bool = True
) -> MergeBudget:
    """How many tokens move in one stage.

    The share `temporal_share` of the merges joins tokens of adjacent groups, the rest tokens of the same group. An odd
    number of groups cannot be paired: all merges are spatial then. Counts are whole numbers per group, so the length
    may miss `keep_ratio * num_tokens` by less than one token per group. `keep_ratio` 1 leaves tokens and groups alone.

    Args:
        num_tokens: tokens of a clip before the stage, a multiple of `groups`.
        groups: temporal groups before the stage.
        keep_ratio: share of the tokens that stay, in (0, 1].
        temporal_share: phi, in [0, 1].
        pair_groups: False for the tube topology, which never joins frames.

    Raises:
        ValueError: for ratios out of range, tokens that do not split evenly into groups, and more merges than a stage
            can do (half of a group in space, every token of each second group in time).
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio is the share of tokens that stay, in (0, 1]; got {keep_ratio}.")
    if not 0 <= temporal_share <= 1:
        raise ValueError(f"temporal_share is the share of the merges done over time, in [0, 1]; got {temporal_share}.")
    if num_tokens < 1 or groups < 1 or num_tokens % groups:
        raise ValueError(f"{num_tokens} tokens do not split evenly into {groups} temporal groups.")

    merges = round((1 - keep_ratio) * num_tokens)
    if merges == 0:
        return MergeBudget(num_tokens, groups, 0, 0, num_tokens, groups)
    paired = pair_groups and groups > 1 and groups % 2 == 0
    pairs = groups // 2 if paired else 0
    per_group = num_tokens // groups
    spatial = min(round((1 - temporal_share if paired else 1) * merges / groups), per_group // 2)
    temporal = 0
    if paired:
        left = per_group - spatial
        temporal = min(max(round((merges - spatial * groups) / pairs), 0), left)
    missing = merges - spatial * groups - temporal * pairs
    # A fraction of a token per group is rounding; more was asked for in earnest.
    if missing >= (pairs if paired else groups):
        raise ValueError(
            f"keep_ratio {keep_ratio} asks for {merges} merges among {num_tokens} tokens in {groups} temporal groups, "
            "but "
            f"one stage with temporal_share {temporal_share} can do {merges - missing}: keep more tokens per stage, "
            "use "
            "more stages, or move the share."
        )
    return MergeBudget(
        num_tokens, groups, spatial, temporal, num_tokens - spatial * groups - temporal * pairs, pairs or groups
    )


def merge_budgets(
    num_tokens: int,
    groups: int,
    keep_ratio: float,
    num_stages: int,
    temporal_share: float = 0.5,
    pair_groups: bool = True,
) -> tuple[MergeBudget, ...]:
    """The budgets of successive stages, each keeping `keep_ratio` of what the one before left; see `merge_budget`.

    1568 tokens in 8 groups, keep 0.75, three stages: 1176, 882, 662.
    """
    budgets = []
    for _ in range(num_stages):
        budgets.append(merge_budget(num_tokens, groups, keep_ratio, temporal_share, pair_groups))
        num_tokens, groups = budgets[-1].length_out, budgets[-1].groups_out
    return tuple(budgets)


def constant_budgets(num_tokens: int, merges: int, num_stages: int) -> tuple[MergeBudget, ...]:
    """The same number of merges in every stage, without temporal groups: what the baselines are run with.

    Raises:
        ValueError: where a stage would merge more than half of its tokens.
    """
    budgets = []
    for stage in range(num_stages):
        if not 0 <= merges <= num_tokens // 2:
            raise ValueError(
                f"Stage {stage} has {num_tokens} tokens: between 0 and {num_tokens // 2} can merge, not {merges}."
            )
        budgets.append(MergeBudget(num_tokens, 1, merges, 0, num_tokens - merges, 1))
        num_tokens -= merges
    return tuple(budgets)


def pool_budget(grid: Sequence[int], meta_grid: Sequence[int], groups_out: int) -> MergeBudget:
    """The budget of the variant "pool": `groups_out` windows of frames with one token per global meta token.

    Raises:
        ValueError: if the frames do not split evenly into windows or the meta grid is finer than the grid of tokens.
    """
    frames = grid[0]
    if groups_out < 1 or frames % groups_out:
        raise ValueError(f"{frames} frames do not split evenly into {groups_out} windows.")
    if len(meta_grid) != 3 or not all(1 <= cells <= places for cells, places in zip(meta_grid, grid, strict=True)):
        raise ValueError(f"A meta grid of {tuple(meta_grid)} cells does not fit the {tuple(grid)} grid of tokens.")
    return MergeBudget(math.prod(grid), frames, 0, 0, groups_out * math.prod(meta_grid), groups_out)


# --- state ---


def start_merging(tokens: torch.Tensor, grid: Sequence[int]) -> MergeState:
    """The state before the first stage: every token has size 1 and lies where it came from.

    Args:
        tokens: (batch, frames * rows * columns, channels), frame-major, without class token.
        grid: (frames, rows, columns).

    Raises:
        ValueError: if the tokens are not those of the grid.
    """
    if tokens.ndim != 3 or len(grid) != 3 or tokens.shape[1] != math.prod(grid):
        raise ValueError(
            "Merging starts from (batch, frames * rows * columns, channels) tokens, frame-major and without class "
            "token; "
            f"got {tuple(tokens.shape)} for a grid of {tuple(grid)}."
        )
    batch, length, _ = tokens.shape
    dtype = _working_dtype(tokens)
    frames, rows, columns = grid
    axes = [torch.arange(size, dtype=dtype, device=tokens.device) for size in grid]
    positions = torch.stack(
        (
            axes[0].repeat_interleave(rows * columns),
            axes[1].repeat_interleave(columns).repeat(frames),
            axes[2].repeat(frames * rows),
        ),
        dim=-1,
    ).expand(batch, -1, -1)
    sizes = torch.ones((batch, length), dtype=dtype, device=tokens.device)
    source = torch.arange(length, device=tokens.device).expand(batch, -1)
    return MergeState(tokens, sizes, positions, positions, source, frames, (frames, rows, columns))


def unmerge(values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Give every original token the value of the token that it is in now; zeros for dropped ones.

    Args:
        values: (batch, L, channels), one row per current token.
        source: (batch, original L), `MergeState.source`. After a soft merge (`top_q` > 1) a token counts as being in
            its most similar receiver.

    Returns:
        (batch, original L, channels).
    """
    dropped = (source < 0)[..., None]
    return _take(values, source.clamp(min=0)).masked_fill(dropped, 0)


def size_weighted_mean(tokens: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """The mean over the ORIGINAL tokens: (batch, L, channels) and (batch, L) give (batch, channels).

    A plain mean of merged tokens would let a size-1 token count as much as one that stands for a hundred.
    """
    total = (tokens * sizes[..., None]).sum(1) / sizes.sum(1)[:, None]
    return total.to(tokens.dtype)


def metric_from_keys(keys: torch.Tensor) -> torch.Tensor:
    """The space in which tokens are compared (choice): attention keys before rotary embedding, averaged over the heads.

    Args:
        keys: (batch, heads, L, head_dim).

    Returns:
        (batch, L, head_dim).
    """
    return keys.mean(1)


def motion_features(state: MergeState) -> torch.Tensor:
    """Seven numbers per token, linear in positions but for the size: centroid / grid, (centroid - anchor) / grid, log
        size.

    For the track of an object the difference is "mean place of its members minus place of the earliest": its velocity
    is the spatial part over the temporal part. Tokens merged inside one frame have 0 there.

    Returns:
        (batch, L, 7), dtype of the positions. The linear layer behind it, zero at initialisation, is the model's.
    """
    grid = torch.tensor(state.grid, dtype=state.positions.dtype, device=state.positions.device)
    motion = state.positions - state.anchors
    return torch.cat((state.positions / grid, motion / grid, state.sizes.log()[..., None]), dim=-1)


# --- the primitive ---


def aggregate(values: torch.Tensor, mass: torch.Tensor, assignment: Assignment) -> tuple[torch.Tensor, torch.Tensor]:
    """Mass-weighted means under an assignment W whose rows sum to 1: `new_j = sum_i W_ij m_i v_i / sum_i W_ij m_i`.

    W is never built: movers are gathered and added into the survivors. The total of mass and of mass * value is kept.

    Args:
        values: (batch, groups, n, channels).
        mass: (batch, groups, n): sizes, or sizes times a saliency gate.
        assignment: which tokens stay and where the others go.

    Returns:
        The means, (batch, groups, m, channels) in the dtype of `values`, and their mass, (batch, groups, m).
    """
    share = mass.gather(-1, assignment.movers)[..., None] * assignment.weights
    places = assignment.targets.flatten(-2)
    kept_mass = mass.gather(-1, assignment.survivors)
    total = kept_mass.scatter_add(-1, places, share.flatten(-2))
    # Weights are divided rather than sums: no pass over all channels, and a survivor that receives nothing keeps its
    # bits.
    share = share / total.gather(-1, places).view_as(share)
    moved = share[..., None] * _take(values, assignment.movers)[..., None, :]
    means = (kept_mass / total)[..., None] * _take(values, assignment.survivors)
    # In place: `means` is ours alone, and autograd has no use for it.
    means.view(-1, means.shape[-1]).index_add_(0, _flat_rows(places, means.shape[2]), moved.flatten(0, 3))
    return means.to(values.dtype), total


def assign_most_similar(
    similarity: torch.Tensor,
    sources: torch.Tensor,
    receivers: torch.Tensor,
    num_moves: int,
    top_q: int = 1,
    temperature: float = 0.05,
) -> Assignment:
    """The sources that resemble a receiver most move into it; all other tokens stay.

    Which tokens move is a hard choice. Among equals the source listed first moves first. With `top_q` > 1 a mover is
    shared between its most similar receivers by a softmax, through which the gradient reaches the similarity.

    Args:
        similarity: (batch, groups, number of sources, number of receivers).
        sources, receivers: (batch, groups, ...) int64, their token numbers; together all n tokens of a group.
        num_moves: sources that move.

    Raises:
        ValueError: if there are fewer sources than moves, or `top_q` or `temperature` is not positive.
    """
    num_sources, num_receivers = similarity.shape[-2:]
    if not 0 <= num_moves <= num_sources or num_receivers == 0:
        raise ValueError(f"{num_moves} tokens cannot move from {num_sources} sources into {num_receivers} receivers.")
    if top_q < 1 or temperature <= 0:
        raise ValueError(f"top_q must be 1 or more and temperature positive; got {top_q} and {temperature}.")
    best, nearest = similarity.detach().max(-1)
    chosen = best.argsort(dim=-1, descending=True, stable=True)[..., :num_moves]
    movers = sources.gather(-1, chosen)
    if top_q == 1:
        nearest = nearest.gather(-1, chosen)[..., None]
        weights = torch.ones_like(nearest, dtype=similarity.dtype)
    else:
        closest, nearest = _take(similarity, chosen).topk(min(top_q, num_receivers), dim=-1)
        weights = (closest / temperature).softmax(-1)

    # Renumber: survivors keep their order, movers are found in their first receiver.
    num_tokens = num_sources + num_receivers
    moved = torch.zeros((*movers.shape[:-1], num_tokens), dtype=torch.int64, device=movers.device)
    moved = moved.scatter(-1, movers, 1)
    survivors = moved.argsort(dim=-1, stable=True)[..., : num_tokens - num_moves]
    place = (1 - moved).cumsum(-1) - 1
    targets = place.gather(-1, receivers.gather(-1, nearest.flatten(-2))).view_as(nearest)
    landing = place.scatter(-1, movers, targets[..., 0])
    return Assignment(survivors, movers, targets, weights, landing)


# --- who receives, and what is alike ---


def checkerboard_order(
    positions: torch.Tensor, gate: torch.Tensor | None = None, axes: Sequence[int] = (0, 1, 2)
) -> torch.Tensor:
    """Tokens of each group, receivers first: even places of a checkerboard over time, row and column, in raster order.

    The first half (rounded up) are the receivers, the local meta tokens; so every source has all its neighbours among
    them. The order depends on where tokens lie, not on how they are stored.

    Args:
        positions: (batch, groups, n, 3).
        gate: (batch, groups, n), optional saliency: salient tokens come first, the checkerboard decides between equals.
        axes: which of (time, row, column) colour the board.

    Returns:
        (batch, groups, n) int64.
    """
    steps = _position_steps(positions)
    odd = torch.div(steps[..., list(axes)].sum(-1) + POSITION_STEPS // 2, POSITION_STEPS, rounding_mode="floor") % 2
    raster = (steps[..., 0] << 2 * POSITION_BITS) + (steps[..., 1] << POSITION_BITS) + steps[..., 2]
    if gate is None:
        return (raster + (odd << 3 * POSITION_BITS)).argsort(dim=-1, stable=True)
    order = raster.argsort(dim=-1, stable=True)
    score = (gate.detach() + 1e-3 * (1 - odd)).gather(-1, order)
    return order.gather(-1, score.argsort(dim=-1, descending=True, stable=True))


def global_meta_tokens(
    metric: torch.Tensor,
    sizes: torch.Tensor,
    positions: torch.Tensor,
    grid: Sequence[int],
    meta_grid: Sequence[int] = (2, 4, 4),
    rounds: int = 2,
    temperature: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Object-level meta tokens of a clip (choice): soft k-means on the metric, started from a coarse grid of cells.

    Args:
        metric: (batch, L, dim); sizes (batch, L); positions (batch, L, 3).
        grid: frames, rows, columns of the original tokens; meta_grid: cells along each, K in all.

    Returns:
        Unit vectors (batch, K, dim), and the assignment (batch, L, K) whose rows sum to 1. A cell without tokens at the
        start stays empty.
    """
    # Integer arithmetic: a centroid on the border of two cells falls on one side whatever its rounding.
    counts = torch.tensor(tuple(meta_grid), device=positions.device)
    extent = torch.tensor(tuple(grid), device=positions.device) * POSITION_STEPS
    cell = torch.div(_position_steps(positions) * counts, extent, rounding_mode="floor")
    cell = cell.clamp(min=torch.zeros_like(counts), max=counts - 1)
    cell = (cell[..., 0] * meta_grid[1] + cell[..., 1]) * meta_grid[2] + cell[..., 2]
    numbers = torch.arange(math.prod(meta_grid), device=positions.device)
    assignment = (cell[..., None] == numbers).to(metric.dtype)
    empty = (assignment.sum(1) == 0)[:, None]

    unit = nn.functional.normalize(metric, dim=-1)
    for _ in range(rounds + 1):
        metas = nn.functional.normalize((assignment * sizes[..., None]).transpose(1, 2) @ metric, dim=-1)
        scores = unit @ metas.transpose(1, 2) / temperature
        assignment = scores.masked_fill(empty, -torch.inf).softmax(-1)
    return metas, assignment


# --- stages ---


def _without_autocast(stage: Callable[..., MergeState]) -> Callable[..., MergeState]:
    """Merging counts tokens: run it in the dtypes it chose, also inside an autocast region."""

    @functools.wraps(stage)
    def run(state: MergeState, *args: Any, **kwargs: Any) -> MergeState:
        device = state.tokens.device.type
        if device != "meta" and torch.is_autocast_enabled(device):  # which raises for the meta device
            with torch.autocast(device, enabled=False):
                return stage(state, *args, **kwargs)
        return stage(state, *args, **kwargs)

    return run


@_without_autocast
def merge_match(
    state: MergeState,
    metric: torch.Tensor,
    budget: MergeBudget,
    settings: MergeSettings = TRAINING_FREE,
    gate: torch.Tensor | None = None,
) -> MergeState:
    """STTM's default stage: a spatial step inside every group, then a temporal step over pairs of groups (2u, 2u + 1).

    In the temporal step the earlier group receives, so that the anchor of a token stays where its track began. A
    saliency gate weighs features, not sizes or positions; over both steps the weights of a token's members multiply out
    as in one (choice: the gated mass is carried, not the gate averaged).

    Args:
        state: (batch, L, ...) tokens in `budget.groups_in` groups.
        metric: (batch, L, dim), see `metric_from_keys`. With `top_q` 1 no gradient reaches it.
        budget: from `merge_budgets`.
        gate: (batch, L), optional; adds to the score by which receivers are chosen and weighs features by exp(gate).

    Raises:
        ValueError: if metric, gate or budget do not fit the state.
    """
    _check(state, metric, budget, gate)
    if budget.groups_in != state.groups:
        raise ValueError(f"The budget is for {budget.groups_in} temporal groups, the tokens have {state.groups}.")
    if budget.length_out == budget.length_in:
        return state._replace(groups=budget.groups_out)
    features = _similarity_features(state, metric, settings)
    mass = _feature_mass(state, gate)
    rule = (settings.top_q, settings.temperature)

    if budget.spatial:
        groups = state.groups
        grouped_gate = None if gate is None else _group(gate, groups)
        order = checkerboard_order(_group(state.positions, groups), grouped_gate)
        receivers, sources = order.tensor_split([order.shape[-1] - order.shape[-1] // 2], dim=-1)
        similarity = _similarity(features, groups, sources, receivers, settings.meta_weight)
        assignment = assign_most_similar(similarity, sources, receivers, budget.spatial, *rule)
        features = [_ungroup(aggregate(_group(part, groups), _group(mass, groups), assignment)[0]) for part in features]
        state, mass = _aggregate_state(state, mass, assignment)

    if budget.groups_out < state.groups:
        state = state._replace(groups=budget.groups_out)
        if budget.temporal:
            tokens = torch.arange(state.tokens.shape[1] // state.groups, device=state.tokens.device)
            tokens = tokens.expand(state.tokens.shape[0], state.groups, -1)
            receivers, sources = tokens.chunk(2, dim=-1)
            similarity = _similarity(features, state.groups, sources, receivers, settings.meta_weight)
            assignment = assign_most_similar(similarity, sources, receivers, budget.temporal, *rule)
            state, mass = _aggregate_state(state, mass, assignment, keep_anchors=True)
    return state


@_without_autocast
def merge_tube(
    state: MergeState,
    metric: torch.Tensor,
    budget: MergeBudget,
    settings: MergeSettings = TRAINING_FREE,
    gate: torch.Tensor | None = None,
) -> MergeState:
    """For divided space-time attention: one spatial assignment, applied to every frame, so that token i stays one
    place.

    The similarity is averaged over time and the checkerboard coloured by row and column alone. Frames are never joined.
    Arguments as for `merge_match`; the budget comes from `merge_budgets(..., pair_groups=False)`.

    Raises:
        ValueError: if metric, gate or budget do not fit the state, or the budget joins frames.
    """
    _check(state, metric, budget, gate)
    _check_tube(state, budget)
    if budget.length_out == budget.length_in:
        return state
    groups = state.groups
    features = _similarity_features(state, metric, settings)
    positions = _group(state.positions, groups)[:, :1]
    grouped_gate = None if gate is None else _group(gate, groups).mean(1, keepdim=True)
    order = checkerboard_order(positions, grouped_gate, axes=(1, 2))
    receivers, sources = order.tensor_split([order.shape[-1] - order.shape[-1] // 2], dim=-1)
    sources_in_all, receivers_in_all = (part.expand(-1, groups, -1) for part in (sources, receivers))
    similarity = _similarity(features, groups, sources_in_all, receivers_in_all, settings.meta_weight)
    similarity = similarity.mean(1, keepdim=True)
    assignment = assign_most_similar(
        similarity, sources, receivers, budget.spatial, settings.top_q, settings.temperature
    )
    assignment = Assignment(*(part.expand(-1, groups, *part.shape[2:]) for part in assignment))
    return _aggregate_state(state, _feature_mass(state, gate), assignment)[0]


@_without_autocast
def merge_pool(
    state: MergeState,
    metric: torch.Tensor,
    budget: MergeBudget,
    settings: MergeSettings = TRAINING_FREE,
) -> MergeState:
    """The variant closest to the abstract's wording: all tokens of a frame go, softly, into global meta tokens shared
    by the clip; then windows of frames are fused meta token by meta token. Needs training. One stage, on unmerged
    tokens.

    Features of a window are weighed by size * exp(similarity to the meta token / temperature); sizes and positions by
    size alone, so their totals are kept.

    Args:
        budget: from `pool_budget`; the meta grid is `settings.meta_grid`, the softmax's tau `settings.temperature`.

    Raises:
        ValueError: if metric or budget do not fit the state, or tokens were merged before.
    """
    _check(state, metric, budget)
    if budget != pool_budget(state.grid, settings.meta_grid, budget.groups_out):
        raise ValueError(
            f"{budget} is not the budget for pooling a {state.grid} grid by {settings.meta_grid} meta tokens; make it "
            "with "
            "pool_budget."
        )
    dtype = state.sizes.dtype
    metric = metric.to(dtype)
    metas, _ = _meta_tokens_of(state, metric, settings)
    frames, windows, num_metas = state.groups, budget.groups_out, metas.shape[1]
    tiny = torch.finfo(dtype).tiny

    # (batch, frames, n, K): the share of each token that goes into each meta token of its frame
    cosine = _group(nn.functional.normalize(metric, dim=-1) @ metas.transpose(1, 2), frames)
    share = (cosine / settings.temperature).softmax(-1)
    share_t = (share * _group(state.sizes, frames)[..., None]).transpose(-1, -2)
    sizes = share_t.sum(-1)

    def into_metas(values: torch.Tensor) -> torch.Tensor:
        return share_t @ _group(values.to(dtype), frames) / sizes.clamp(min=tiny)[..., None]

    tokens, pooled_metric = into_metas(state.tokens), into_metas(metric)
    positions, anchors = into_metas(state.positions), into_metas(state.anchors)

    salience = (nn.functional.normalize(pooled_metric, dim=-1) * metas[:, None]).sum(-1) / settings.temperature
    tokens, total, positions, anchors = _fuse_windows(windows, sizes, salience, tokens, positions, anchors)

    window = torch.arange(frames, device=metric.device) // (frames // windows)
    source = share.detach().argmax(-1) + (window * num_metas)[:, None]
    return MergeState(
        _ungroup(tokens).to(state.tokens.dtype),
        _ungroup(total),
        _ungroup(positions),
        _ungroup(anchors),
        _ungroup(source).gather(1, state.source),
        windows,
        state.grid,
    )


def _fuse_windows(
    windows: int,
    sizes: torch.Tensor,
    salience: torch.Tensor,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    anchors: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The frames of each window as one: features weighed by size * exp(salience), positions by size, the first anchors.

    Args:
        sizes, salience: (batch, frames, K); tokens, positions, anchors: (batch, frames, K, ...).

    Returns:
        Tokens, sizes, positions and anchors, (batch, windows, K, ...).
    """
    tiny = torch.finfo(sizes.dtype).tiny
    sizes, salience, tokens, positions, anchors = (
        part.unflatten(1, (windows, -1)) for part in (sizes, salience, tokens, positions, anchors)
    )
    # The largest of a window is taken out: means do not change, and exp cannot overflow.
    weight = (sizes * (salience - salience.detach().amax(2, keepdim=True)).exp()).clamp(min=tiny)[..., None]
    total = sizes.sum(2)
    tokens = (weight * tokens).sum(2) / weight.sum(2)
    positions = (sizes[..., None] * positions).sum(2) / total.clamp(min=tiny)[..., None]
    return tokens, total, positions, anchors[:, :, 0]


@_without_autocast
def merge_alternate(state: MergeState, metric: torch.Tensor, budget: MergeBudget) -> MergeState:
    """Baseline in the manner of ToMe (arXiv 2210.09461), written from its description: every second token is a source,
    each source looks for its most similar receiver by cosine, and the best pairs merge by size-weighted mean.

    Knows neither frames nor places. Afterwards the tokens form a single group; at most half of them can merge.
    """
    _check(state, metric, budget)
    moves = budget.length_in - budget.length_out
    if moves == 0:
        return state._replace(groups=1)
    tokens = torch.arange(state.tokens.shape[1], device=state.tokens.device).expand(state.tokens.shape[0], 1, -1)
    sources, receivers = tokens[..., ::2], tokens[..., 1::2]
    features = [metric.detach().to(state.sizes.dtype)]
    similarity = _similarity(features, 1, sources, receivers, 0.0)
    assignment = assign_most_similar(similarity, sources, receivers, moves)
    return _aggregate_state(state._replace(groups=1), state.sizes, assignment)[0]


def merge_at_random(
    state: MergeState,
    metric: torch.Tensor,
    budget: MergeBudget,
    generator: torch.Generator | None = None,
    tube: bool = False,
) -> MergeState:
    """Baseline: merges between tokens that chance calls similar, drawn anew for every clip. It shows what the search
    for similar tokens is worth. `metric` gives its shape alone.

    Args:
        tube: pairs as in `merge_tube`, the same in every frame. Otherwise as in `merge_alternate`.
    """
    chance = torch.randn(metric.shape, generator=generator, device=metric.device, dtype=state.sizes.dtype)
    return merge_tube(state, chance, budget) if tube else merge_alternate(state, chance, budget)


def drop_at_random(
    state: MergeState, budget: MergeBudget, generator: torch.Generator | None = None, tube: bool = False
) -> MergeState:
    """Baseline: as many tokens as the budget merges are thrown away, chosen anew for every clip. What merging has to
    beat.

    The sizes of the others stay, and `source` of a dropped token is -1.

    Args:
        tube: the same places go in every frame, for networks that relate frames place by place, and the frames stay
            apart. Otherwise the tokens form a single group.

    Raises:
        ValueError: if the budget does not fit the state, or joins the frames of a tube.
    """
    _check(state, None, budget)
    if tube:
        _check_tube(state, budget)
    groups = state.groups if tube else 1
    batch, length = state.sizes.shape
    if budget.length_out == length:
        return state._replace(groups=groups)
    places, device = length // groups, state.tokens.device
    chance = torch.rand((batch, places), generator=generator, device=device)
    kept = chance.argsort(dim=1)[:, : budget.length_out // groups].sort(dim=1).values
    kept = (kept[:, None] + torch.arange(0, length, places, device=device)[:, None]).flatten(1)
    place = torch.full((batch, length), -1, device=device)
    numbers = torch.arange(budget.length_out, device=device).expand_as(kept)
    place = place.scatter(1, kept, numbers)
    # Tokens dropped by an earlier stage stay dropped.
    source = torch.where(state.source < 0, -1, place.gather(1, state.source.clamp(min=0)))
    return MergeState(
        _take(state.tokens, kept),
        state.sizes.gather(1, kept),
        _take(state.positions, kept),
        _take(state.anchors, kept),
        source,
        groups,
        state.grid,
    )


# To compare with, at equal cost: they need a budget's lengths alone, and learn nothing.
BASELINES = ("tome", "random", "drop", "tube-random", "tube-drop")
MERGE_METHODS = ("match", "tube", "pool", *BASELINES)
# The same merges in all frames, which are never joined: their budgets are made with pair_groups=False.
TUBE_METHODS = ("tube", "tube-random", "tube-drop")


def merge_tokens(
    state: MergeState,
    metric: torch.Tensor,
    budget: MergeBudget,
    settings: MergeSettings = TRAINING_FREE,
    method: str = "match",
    gate: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> MergeState:
    """Every way of having fewer tokens by its name: STTM's "match", "tube" and "pool", and the BASELINES.

    The baselines read nothing of a budget but its lengths (those of a tube its groups as well), so one budget compares
    all of them at equal cost.

    Raises:
        ValueError: for an unknown method, a gate where it would be ignored, and whatever the method itself refuses.
    """
    if method not in MERGE_METHODS:
        raise ValueError(f"Unknown merge method {method!r}: give one of {MERGE_METHODS}.")
    if method == "match":
        return merge_match(state, metric, budget, settings, gate)
    if method == "tube":
        return merge_tube(state, metric, budget, settings, gate)
    if gate is not None:
        raise ValueError(f"The merge method {method!r} has no saliency gate; it belongs to 'match' and 'tube'.")
    if method == "pool":
        return merge_pool(state, metric, budget, settings)
    if method == "tome":
        return merge_alternate(state, metric, budget)
    tube = method in TUBE_METHODS
    if method in ("random", "tube-random"):
        return merge_at_random(state, metric, budget, generator, tube)
    return drop_at_random(state, budget, generator, tube)


# --- attention over tokens of different size ---


class SizedAttentionInputs(NamedTuple):
    """What to call attention with, and how to read its answer: `output[..., :head_dim]`."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float  # to be passed on explicitly: the default would be taken from the widened channels
    head_dim: int  # channels of the answer that are real


def add_size_channel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sizes: torch.Tensor,
    alpha: float | torch.Tensor = 1.0,
    scale: float | None = None,
) -> SizedAttentionInputs:
    """Attention logits `q.k * scale + alpha * log(size of the key)` without a mask, so that flash kernels stay usable.

    The bias enters as one more channel, 1 in the query and bias / scale in the key; a second one holds what the dtype
    rounds off the first. Zeros fill up to a multiple of 8 channels. A token of size s then draws as much attention as s
    equal tokens (alpha 1).

    Args:
        query: (batch, heads, queries, head_dim); key, value: (batch, heads, keys, head_dim).
        sizes: (batch, keys); a class token has size 1.
        alpha: strength, or a scalar tensor to learn it. The number 0 leaves all inputs as they are.
        scale: of the attention; None: 1 / sqrt(head_dim).

    Raises:
        ValueError: if shapes do not fit.
    """
    head_dim = query.shape[-1]
    if key.shape[-1] != head_dim or value.shape[-1] != head_dim or sizes.shape != (key.shape[0], key.shape[2]):
        raise ValueError(
            "Size-aware attention needs query, key and value of (batch, heads, length, head_dim) and sizes of (batch, "
            "keys); "
            f"got {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)} and {tuple(sizes.shape)}."
        )
    scale = head_dim**-0.5 if scale is None else scale
    if not isinstance(alpha, torch.Tensor) and alpha == 0:
        return SizedAttentionInputs(query, key, value, scale, head_dim)
    extra = 2 + -(head_dim + 2) % 8
    bias = (alpha * sizes.log() / scale)[:, None, :, None]
    coarse = bias.to(key.dtype)
    rest = (bias - coarse).to(key.dtype)
    heads = key.shape[1]
    channels = nn.functional.pad(torch.cat((coarse, rest), dim=-1), (0, extra - 2)).expand(-1, heads, -1, -1)
    ones = nn.functional.pad(torch.ones_like(query[..., :2]), (0, extra - 2))
    return SizedAttentionInputs(
        torch.cat((query, ones), dim=-1),
        torch.cat((key, channels), dim=-1),
        nn.functional.pad(value, (0, extra)),
        scale,
        head_dim,
    )


# --- tensors and shapes ---


def _working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float32, or float64 for float64 tokens."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _flat_rows(index: torch.Tensor, length: int) -> torch.Tensor:
    """Row numbers (..., k) inside blocks of `length` rows, as numbers in all blocks one after the other, flat."""
    blocks = math.prod(index.shape[:-1])
    first = torch.arange(blocks, device=index.device) * length
    return (index + first.view(*index.shape[:-1], 1)).flatten()


def _take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows of (..., n, channels) by (..., k) numbers: (..., k, channels). Copies whole rows, faster than `gather`."""
    channels = values.shape[-1]
    rows = values.reshape(-1, channels).index_select(0, _flat_rows(index, values.shape[-2]))
    return rows.view(*index.shape, channels)


def _group(values: torch.Tensor, groups: int) -> torch.Tensor:
    """(batch, L, ...) to (batch, groups, L / groups, ...)."""
    return values.unflatten(1, (groups, -1))


def _ungroup(values: torch.Tensor) -> torch.Tensor:
    """(batch, groups, n, ...) to (batch, groups * n, ...)."""
    return values.flatten(1, 2)


def _position_steps(positions: torch.Tensor) -> torch.Tensor:
    """Positions in whole steps of 1 / POSITION_STEPS patch, int64."""
    return (positions.detach() * POSITION_STEPS).round().long()


def _feature_mass(state: MergeState, gate: torch.Tensor | None) -> torch.Tensor:
    """What features are weighed by, (batch, L)."""
    return state.sizes if gate is None else state.sizes * gate.to(state.sizes.dtype).exp()


def _similarity_features(state: MergeState, metric: torch.Tensor, settings: MergeSettings) -> list[torch.Tensor]:
    """What tokens are compared by: the metric, and their global meta tokens where these count."""
    # A hard choice has no gradient: nothing needs to be kept for one.
    metric = (metric.detach() if settings.top_q == 1 else metric).to(state.sizes.dtype)
    if not isinstance(settings.meta_weight, torch.Tensor) and settings.meta_weight == 0:
        return [metric]
    return [metric, _meta_tokens_of(state, metric, settings)[1]]


def _meta_tokens_of(
    state: MergeState, metric: torch.Tensor, settings: MergeSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The global meta tokens of a state, as its settings want them."""
    grids = (state.grid, settings.meta_grid)
    return global_meta_tokens(
        metric, state.sizes, state.positions, *grids, settings.meta_rounds, settings.meta_temperature
    )


def _similarity(
    features: list[torch.Tensor],
    groups: int,
    sources: torch.Tensor,
    receivers: torch.Tensor,
    meta_weight: float | torch.Tensor,
) -> torch.Tensor:
    """Cosine of the metrics plus `meta_weight` times that on meta tokens, (batch, groups, sources, receivers)."""
    unit = _group(nn.functional.normalize(features[0], dim=-1), groups)
    similarity = _take(unit, sources) @ _take(unit, receivers).transpose(-1, -2)
    if len(features) == 1:
        return similarity
    assignment = _group(features[1], groups)
    agreement = _take(assignment, sources) @ _take(assignment, receivers).transpose(-1, -2)
    return similarity + meta_weight * agreement


def _aggregate_state(
    state: MergeState, mass: torch.Tensor, assignment: Assignment, keep_anchors: bool = False
) -> tuple[MergeState, torch.Tensor]:
    """Every field of the state under an assignment inside its groups, and the features' mass (batch, L).

    Args:
        keep_anchors: the receiver's anchor stays (temporal step); else anchors are averaged as positions are.
    """
    groups, dtype = state.groups, state.sizes.dtype
    sizes, grouped_mass = _group(state.sizes, groups), _group(mass, groups)
    tokens, new_mass = aggregate(_group(state.tokens, groups), grouped_mass, assignment)
    places = torch.cat((state.positions, state.anchors), dim=-1).to(dtype)
    places, new_sizes = aggregate(_group(places, groups), sizes, assignment)
    positions, anchors = places.split(3, dim=-1)
    if keep_anchors:
        anchors = _take(_group(state.anchors, groups), assignment.survivors)
    first = torch.arange(groups, device=sizes.device)[:, None] * assignment.survivors.shape[-1]
    landing = _ungroup(assignment.landing + first)
    # A token that a baseline dropped stays dropped.
    source = torch.where(state.source < 0, -1, landing.gather(1, state.source.clamp(min=0)))
    merged = MergeState(
        _ungroup(tokens), _ungroup(new_sizes), _ungroup(positions), _ungroup(anchors), source, groups, state.grid
    )
    return merged, _ungroup(new_mass)


def _check(
    state: MergeState, metric: torch.Tensor | None, budget: MergeBudget, gate: torch.Tensor | None = None
) -> None:
    """Refuse what would fail, or not fail, deep inside."""
    expected = tuple(state.tokens.shape[:2])
    if budget.length_in != expected[1]:
        raise ValueError(f"The budget is for {budget.length_in} tokens, the clip has {expected[1]}.")
    if metric is not None and (metric.ndim != 3 or tuple(metric.shape[:2]) != expected):
        raise ValueError(
            f"The metric must be (batch, tokens, dim) with {expected} in front, class token cut off; got "
            f"{tuple(metric.shape)}."
        )
    if gate is not None and tuple(gate.shape) != expected:
        raise ValueError(f"The gate must be {expected}, one number per token; got {tuple(gate.shape)}.")


def _check_tube(state: MergeState, budget: MergeBudget) -> None:
    if budget.groups_in != state.groups or budget.groups_out != state.groups:
        raise ValueError(
            f"A tube keeps the {state.groups} frames of the tokens apart; the budget goes from {budget.groups_in} to "
            f"{budget.groups_out} groups. Make it with pair_groups=False."
        )
