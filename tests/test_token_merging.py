import functools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from hf_tps.token_merging import (
    BASELINES,
    MERGE_METHODS,
    TRAINING_FREE,
    TUBE_METHODS,
    MergeSettings,
    MergeState,
    add_size_channel,
    checkerboard_order,
    constant_budgets,
    drop_at_random,
    global_meta_tokens,
    merge_budget,
    merge_budgets,
    merge_match,
    merge_pool,
    merge_tokens,
    merge_tube,
    metric_from_keys,
    motion_features,
    pool_budget,
    size_weighted_mean,
    start_merging,
    unmerge,
)

GRID = (4, 4, 6)
LENGTH = math.prod(GRID)
SOFT = MergeSettings(top_q=4, meta_weight=0.3)


def random_clip(batch=2, channels=5, dim=6, grid=GRID, dtype=torch.float64):
    length = math.prod(grid)
    state = start_merging(torch.randn(batch, length, channels, dtype=dtype), grid)
    return state, torch.randn(batch, length, dim, dtype=dtype)


def run_stages(state, metric, budgets, settings=TRAINING_FREE, method="match"):
    """Stages one after the other; the metric of a later stage is that of the first token of each merged one."""
    weight = metric.new_tensor(range(1, state.tokens.shape[-1] * metric.shape[-1] + 1)).sin()
    weight = weight.view(state.tokens.shape[-1], -1)
    for budget in budgets:
        state = merge_tokens(state, metric, budget, settings, method)
        metric = state.tokens @ weight
    return state


# --- the slow twin: one clip, one token at a time, W written out in full ---


def slow_sum(tensors):
    return functools.reduce(torch.add, tensors)


def slow_cosine(a, b):
    return (a * b).sum() / (a.norm() * b.norm())


def slow_place(position):
    """Positions count in steps of 1/256 patch, so that rounding cannot change who comes first."""
    return [round(p * 256) / 256 for p in position.tolist()]


def slow_metas(metric, sizes, positions, grid, settings):
    cells = settings.meta_grid
    num_cells = math.prod(cells)
    numbers = []
    for position in map(slow_place, positions):
        t, y, x = (
            min(int(p * count / extent), count - 1) for p, count, extent in zip(position, cells, grid, strict=True)
        )
        numbers.append((t * cells[1] + y) * cells[2] + x)
    filled = sorted(set(numbers))
    shares = {i: {k: metric.new_tensor(float(k == numbers[i])) for k in filled} for i in range(len(numbers))}
    for _ in range(settings.meta_rounds + 1):
        metas = {k: slow_sum([sizes[i] * shares[i][k] * metric[i] for i in shares]) for k in filled}
        shares = {}
        for i in range(len(numbers)):
            scores = torch.stack([slow_cosine(metric[i], metas[k]) for k in filled]) / settings.meta_temperature
            shares[i] = dict(zip(filled, scores.softmax(0), strict=True))
    rows = []
    for i in range(len(numbers)):
        rows.append(torch.stack([shares[i].get(k, metric.new_zeros(())) for k in range(num_cells)]))
    return torch.stack(rows)


def slow_moves(similarity, sources, receivers, num_moves, settings):
    """`similarity(i, j)` as a function; returns {mover: {receiver: share}}."""
    similarity = functools.cache(similarity)
    best = {i: max(similarity(i, j).item() for j in receivers) for i in sources}
    movers = sorted(sources, key=lambda i: -best[i])[:num_moves]
    moves = {}
    for i in movers:
        nearest = sorted(receivers, key=lambda j: -similarity(i, j).item())[: settings.top_q]
        if settings.top_q == 1:
            moves[i] = {nearest[0]: 1.0}
        else:
            scores = torch.stack([similarity(i, j) for j in nearest]) / settings.temperature
            moves[i] = dict(zip(nearest, scores.softmax(0), strict=True))
    return moves


def slow_aggregate(fields, moves, temporal):
    """Dense W over all tokens of a clip; fields: dict of per-token lists, `m` the mass of features, `s` the size."""
    stay = [i for i in range(len(fields["s"])) if i not in moves]
    new = {name: [] for name in fields}
    for j in stay:
        members = {j: 1.0, **{i: shares[j] for i, shares in moves.items() if j in shares}}
        for mass, names in (("s", "pa"), ("m", "xzA")):
            total = slow_sum([share * fields[mass][i] for i, share in members.items()])
            new[mass].append(total)
            for name in names:
                if fields[name] is not None and not (name == "a" and temporal):
                    new[name].append(
                        slow_sum([share * fields[mass][i] * fields[name][i] for i, share in members.items()]) / total
                    )
        if temporal:
            new["a"].append(fields["a"][j])
    if fields["A"] is None:
        new["A"] = None
    landing = {j: place for place, j in enumerate(stay)}
    landing.update({i: landing[next(iter(shares))] for i, shares in moves.items()})
    return new, landing


def slow_match(state, metric, budget, settings, gate=None):
    results = []
    for b in range(state.tokens.shape[0]):
        sizes = state.sizes[b]
        fields = {
            "x": list(state.tokens[b]),
            "s": list(sizes),
            "m": list(sizes if gate is None else sizes * gate[b].exp()),
            "p": list(state.positions[b]),
            "a": list(state.anchors[b]),
            "z": list(metric[b]),
            "A": None,
        }
        if isinstance(settings.meta_weight, torch.Tensor) or settings.meta_weight:
            fields["A"] = list(slow_metas(metric[b], sizes, state.positions[b], state.grid, settings))
        source = state.source[b].tolist()

        def similarity(i, j, fields=fields):
            value = slow_cosine(fields["z"][i], fields["z"][j])
            return value if fields["A"] is None else value + settings.meta_weight * (fields["A"][i] @ fields["A"][j])

        per_group = len(sizes) // state.groups
        moves = {}
        for group in range(state.groups):

            def rank(i, fields=fields, b=b):
                t, y, x = slow_place(fields["p"][i])
                score = (math.floor(t + y + x + 0.5) % 2 == 0) * 1e-3
                score += 0 if gate is None else gate[b, i].item()
                return -score, t, y, x

            order = sorted(range(group * per_group, (group + 1) * per_group), key=rank)
            half = -(-per_group // 2)
            moves |= slow_moves(similarity, order[half:], order[:half], budget.spatial, settings)
        fields, landing = slow_aggregate(fields, moves, temporal=False)
        source = [landing[i] for i in source]

        moves, left = {}, per_group - budget.spatial
        for first in range(0, len(fields["s"]), 2 * left) if budget.groups_out < state.groups else ():
            receivers, sources = range(first, first + left), range(first + left, first + 2 * left)
            similarity_now = functools.partial(similarity, fields=fields)
            moves |= slow_moves(similarity_now, sources, receivers, budget.temporal, settings)
        fields, landing = slow_aggregate(fields, moves, temporal=True)
        source = [landing[i] for i in source]
        results.append([torch.stack(fields[name]) for name in "xspa"] + [torch.tensor(source)])
    return MergeState(*(torch.stack(parts) for parts in zip(*results, strict=True)), budget.groups_out, state.grid)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("meta_weight", [0.0, 0.3])
@pytest.mark.parametrize("top_q", [1, 3])
def test_two_stages_equal_their_slow_twin_in_values_and_gradients(top_q, meta_weight, gated):
    grid = (4, 3, 3)
    settings = MergeSettings(top_q=top_q, temperature=0.2, meta_weight=meta_weight, meta_grid=(2, 2, 2))
    if meta_weight:
        settings = settings._replace(meta_weight=torch.tensor(meta_weight, dtype=torch.float64, requires_grad=True))
    tokens = torch.randn(2, 36, 4, dtype=torch.float64, requires_grad=True)
    metrics = [torch.randn(2, n, 5, dtype=torch.float64, requires_grad=True) for n in (36, 36)]
    gates = [torch.randn(2, n, dtype=torch.float64, requires_grad=True) if gated else None for n in (36, 36)]
    budgets = merge_budgets(36, 4, 0.75, 2, temporal_share=0.4)

    def outputs(stage):
        state = start_merging(tokens, grid)
        for budget, metric, gate in zip(budgets, metrics, gates, strict=True):
            cut = budget.length_in
            metric, gate = metric[:, :cut], None if gate is None else gate[:, :cut]
            state = stage(state, metric, budget, settings, gate)
        return state

    fast, slow = outputs(merge_match), outputs(slow_match)
    assert torch.equal(fast.source, slow.source)
    assert fast.groups == slow.groups == 1
    for ours, theirs in zip(fast[:4], slow[:4], strict=True):
        torch.testing.assert_close(ours, theirs)
    watched = [tokens, *(g for g in gates if g is not None)]
    watched += metrics if top_q > 1 else []
    watched += [settings.meta_weight] if top_q > 1 and meta_weight else []

    def scalar(state):
        return sum((part * torch.arange(part.numel()).view_as(part).sin()).sum() for part in state[:4])

    for ours, theirs in zip(
        torch.autograd.grad(scalar(fast), watched), torch.autograd.grad(scalar(slow), watched), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("meta_weight", [0.0, 0.3])
def test_tube_moves_what_the_similarity_averaged_over_frames_says(meta_weight):
    grid, settings = (3, 3, 5), MergeSettings(top_q=2, temperature=0.2, meta_weight=meta_weight, meta_grid=(1, 2, 2))
    state, metric = random_clip(grid=grid)
    budget = merge_budget(45, 3, 0.7, pair_groups=False)
    fast = merge_tube(state, metric, budget, settings)
    for b in range(2):
        unit = nn.functional.normalize(metric[b], dim=-1).view(3, 15, -1)
        metas = slow_metas(metric[b], state.sizes[b], state.positions[b], grid, settings).view(3, 15, -1)
        mean = slow_sum([unit[t] @ unit[t].T + meta_weight * metas[t] @ metas[t].T for t in range(3)]) / 3
        even = [i for i in range(15) if sum(divmod(i, 5)) % 2 == 0]
        odd = [i for i in range(15) if i not in even]
        moves = slow_moves(lambda i, j, mean=mean: mean[i, j], odd, even, budget.spatial, settings)
        frames = []
        for t in range(3):
            cut = slice(15 * t, 15 * t + 15)
            fields = {"x": list(state.tokens[b, cut]), "p": list(state.positions[b, cut])}
            fields |= {"s": list(state.sizes[b, cut]), "z": None, "A": None, "a": list(state.anchors[b, cut])}
            fields["m"] = fields["s"]
            frames.append(slow_aggregate(fields, moves, temporal=False)[0])
        for name, part in zip("xspa", fast[:4], strict=True):
            torch.testing.assert_close(part[b], torch.stack([row for frame in frames for row in frame[name]]))
    places = fast.positions.view(2, 3, -1, 3)[..., 1:]
    assert torch.equal(places[:, :1].expand_as(places), places)  # token i is the same place in every frame


def test_alternate_merging_equals_its_slow_twin():
    state, metric = random_clip(grid=(1, 3, 5))
    budget = merge_budget(15, 1, 0.7)
    fast = merge_tokens(state, metric, budget, method="tome")
    settings = MergeSettings()
    for b in range(2):
        fields = {
            "x": list(state.tokens[b]),
            "s": list(state.sizes[b]),
            "m": list(state.sizes[b]),
            "z": None,
            "A": None,
        }
        fields |= {"p": list(state.positions[b]), "a": list(state.anchors[b])}
        moves = slow_moves(
            lambda i, j, z=metric[b]: slow_cosine(z[i], z[j]), range(0, 15, 2), range(1, 15, 2), 5, settings
        )
        slow, landing = slow_aggregate(fields, moves, temporal=False)
        for name, part in zip("xspa", fast[:4], strict=True):
            torch.testing.assert_close(part[b], torch.stack(slow[name]))
        assert fast.source[b].tolist() == [landing[i] for i in range(15)]


def test_pooling_equals_its_slow_twin():
    grid, settings = (4, 2, 3), MergeSettings(temperature=0.3, meta_grid=(1, 2, 2))
    state, metric = random_clip(grid=grid)
    fast = merge_pool(state, metric, pool_budget(grid, settings.meta_grid, 2), settings)
    metas, _ = global_meta_tokens(metric, state.sizes, state.positions, grid, settings.meta_grid)
    for b in range(2):
        share = {}  # (token, meta token): how much of the token goes there
        for i in range(24):
            scores = torch.stack([slow_cosine(metric[b, i], metas[b, k]) for k in range(4)]) / settings.temperature
            share |= {(i, k): value for k, value in enumerate(scores.softmax(0))}
        for window in range(2):
            for k in range(4):
                masses, weights, tokens, places = [], [], [], []
                for frame in (2 * window, 2 * window + 1):
                    members = range(6 * frame, 6 * frame + 6)
                    mass = slow_sum([share[i, k] for i in members])
                    mean = {}
                    for name, values in (("x", state.tokens), ("z", metric), ("p", state.positions)):
                        mean[name] = slow_sum([share[i, k] * values[b, i] for i in members]) / mass
                    masses.append(mass)
                    weights.append(mass * (slow_cosine(mean["z"], metas[b, k]) / settings.temperature).exp())
                    tokens.append(weights[-1] * mean["x"])
                    places.append(mean["p"])
                row = 4 * window + k
                torch.testing.assert_close(fast.tokens[b, row], slow_sum(tokens) / slow_sum(weights))
                torch.testing.assert_close(fast.sizes[b, row], slow_sum(masses))
                mean_place = slow_sum([m * p for m, p in zip(masses, places, strict=True)]) / slow_sum(masses)
                torch.testing.assert_close(fast.positions[b, row], mean_place)
                torch.testing.assert_close(fast.anchors[b, row], places[0])
        for i in range(24):
            strongest = max(range(4), key=lambda k, i=i, share=share: share[i, k].item())
            assert fast.source[b, i] == 4 * (i // 12) + strongest


# --- budgets ---


@pytest.mark.parametrize(
    ("length", "groups", "keep", "lengths"),
    [
        (1568, 8, 0.75, [1176, 882, 662]),
        (1568, 8, 0.72, [1128, 812, 585]),
        (1568, 8, 0.69, [1080, 744, 513]),
        (1568, 8, 0.79, [1240, 980, 774]),
        (1568, 8, 0.52, [816]),
        (1568, 8, 0.50, [784, 392, 196]),
        (1568, 8, 0.735, [1152, 848, 623]),
        (3136, 16, 0.77, [2416, 1860, 1432]),
        (8192, 32, 0.78, [6384, 4976, 3880]),
        (2048, 8, 0.74, [1516, 1122, 830]),
    ],
    ids=str,
)
def test_budgets_give_the_lengths_of_the_table(length, groups, keep, lengths):
    assert [budget.length_out for budget in merge_budgets(length, groups, keep, len(lengths))] == lengths


def test_budgets_split_space_and_time_as_specified():
    budgets = merge_budgets(1568, 8, 0.75, 3)
    assert [(b.spatial, b.temporal, b.groups_out) for b in budgets] == [(24, 50, 4), (37, 73, 2), (55, 110, 1)]
    assert merge_budgets(1568, 8, 0.75, 3, temporal_share=0)[-1].length_out == 660
    assert merge_budgets(1568, 8, 0.75, 3, temporal_share=1)[0].spatial == 0
    tube = merge_budgets(8 * 196, 8, 0.715, 3, pair_groups=False)
    assert [b.length_out // 8 for b in tube] == [140, 100, 72]
    assert constant_budgets(1568, 90, 12)[-1].length_out == 488


@pytest.mark.parametrize("groups", [1, 3], ids=["one group", "odd"])
def test_groups_that_cannot_be_paired_spend_all_merges_in_space(groups):
    budget = merge_budget(groups * 20, groups, 0.75)
    assert (budget.spatial, budget.temporal, budget.groups_out) == (5, 0, groups)
    state, metric = random_clip(grid=(groups, 4, 5))
    merged = merge_match(state, metric, budget)
    assert merged.tokens.shape[1] == budget.length_out == groups * 15
    frames = torch.arange(groups).repeat_interleave(15).double()
    assert torch.equal(merged.positions[..., 0], frames.expand(2, -1))  # nothing left its frame


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_lengths_and_groups_are_those_of_the_budget_whatever_the_content(method):
    state, metric = random_clip()
    budget = merge_budget(LENGTH, 4, 0.7, pair_groups=method not in TUBE_METHODS)
    settings = MergeSettings(meta_grid=(1, 2, 3))
    if method == "pool":
        budget = pool_budget(GRID, settings.meta_grid, 2)
    merged = merge_tokens(state, metric, budget, settings, method)
    same = merge_tokens(state, torch.ones_like(metric), budget, settings, method)
    for part, other in zip(merged[:5], same[:5], strict=True):
        assert part.shape == other.shape
    assert merged.tokens.shape == (2, budget.length_out, 5)
    assert merged.sizes.shape == (2, budget.length_out)
    assert merged.groups == (1 if method in ("tome", "random", "drop") else budget.groups_out)
    assert not any(part.isnan().any() for part in same[:4])


@pytest.mark.parametrize("method", [method for method in MERGE_METHODS if method != "pool"])
def test_keep_everything_leaves_every_bit(method):
    state, metric = random_clip(dtype=torch.bfloat16)
    merged = merge_tokens(state, metric, merge_budget(LENGTH, 4, 1.0), SOFT, method)
    for part, original in zip(merged[:5], state[:5], strict=True):
        assert torch.equal(part, original)
    assert torch.equal(size_weighted_mean(state.tokens.float(), state.sizes), state.tokens.float().mean(1))
    assert motion_features(merged)[..., 3:].abs().max() == 0


# --- what must be conserved ---


@pytest.mark.parametrize("temporal_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("settings", [MergeSettings(), SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("method", ["match", "tube", "tome", "random", "tube-random"])
def test_mass_and_first_moments_are_conserved(method, settings, temporal_share):
    state, metric = random_clip()
    budgets = merge_budgets(LENGTH, 4, 0.72, 2, temporal_share, pair_groups=method not in TUBE_METHODS)
    merged = run_stages(state, metric, budgets, settings, method)
    torch.testing.assert_close(merged.sizes.sum(1), torch.full((2,), float(LENGTH)).double())
    torch.testing.assert_close(size_weighted_mean(merged.tokens, merged.sizes), state.tokens.mean(1))
    torch.testing.assert_close(size_weighted_mean(merged.positions, merged.sizes), state.positions.mean(1))
    assert merged.sizes.min() >= 1 - 1e-9
    if settings.top_q == 1 or method in BASELINES:
        counts = torch.stack([source.bincount(minlength=merged.sizes.shape[1]) for source in merged.source])
        assert torch.equal(counts.double(), merged.sizes)
    assert merged.source.min() >= 0
    assert merged.source.max() < merged.sizes.shape[1]


def test_a_gate_moves_features_but_neither_mass_nor_positions():
    state, metric = random_clip()
    budget = merge_budget(LENGTH, 4, 0.6)
    gate = torch.randn(2, LENGTH, dtype=torch.float64)
    merged = merge_match(state, metric, budget, gate=gate)
    torch.testing.assert_close(merged.sizes.sum(1), torch.full((2,), float(LENGTH)).double())
    torch.testing.assert_close(size_weighted_mean(merged.positions, merged.sizes), state.positions.mean(1))
    assert (size_weighted_mean(merged.tokens, merged.sizes) - state.tokens.mean(1)).abs().max() > 1e-3
    # over both steps a member weighs exp(gate), whichever step brought it in
    weight = gate.exp()
    for b in range(2):
        for token in merged.source[b].unique():
            inside = merged.source[b] == token
            mean = (state.tokens[b, inside] * weight[b, inside, None]).sum(0) / weight[b, inside].sum()
            torch.testing.assert_close(merged.tokens[b, token], mean)


def test_pooling_conserves_mass_and_positions():
    state, metric = random_clip()
    settings = MergeSettings(meta_grid=(1, 2, 3))
    merged = merge_pool(state, metric, pool_budget(GRID, settings.meta_grid, 2), settings)
    torch.testing.assert_close(merged.sizes.sum(1), torch.full((2,), float(LENGTH)).double())
    torch.testing.assert_close(size_weighted_mean(merged.positions, merged.sizes), state.positions.mean(1))
    assert (motion_features(merged)[..., 3] >= 0).all()  # the anchor is in the earliest frame of the window


def test_hard_merging_stays_within_the_range_of_its_inputs():
    state, metric = random_clip()
    merged = run_stages(state, metric, merge_budgets(LENGTH, 4, 0.6, 2))
    assert (merged.tokens <= state.tokens.amax(1, keepdim=True) + 1e-12).all()
    assert (merged.tokens >= state.tokens.amin(1, keepdim=True) - 1e-12).all()


def test_tokens_that_receive_nothing_keep_their_bits_in_bfloat16():
    state, metric = random_clip(dtype=torch.bfloat16)
    merged = merge_match(state, metric, merge_budget(LENGTH, 4, 0.8))
    alone = merged.sizes == 1
    assert alone.any()
    kept = alone.gather(1, merged.source)
    assert torch.equal(unmerge(merged.tokens, merged.source)[kept], state.tokens[kept])


def test_unmerge_gives_clusters_of_equal_tokens_back():
    # four places that look alike in every frame: what merges is equal
    kinds = torch.randn(8, 5, dtype=torch.float64)
    frame = kinds.repeat_interleave(3, 0)
    state = start_merging(frame.repeat(4, 1)[None], GRID)
    merged = merge_match(state, state.tokens, merge_budget(LENGTH, 4, 0.7))
    torch.testing.assert_close(unmerge(merged.tokens, merged.source), state.tokens)


def test_dropped_tokens_come_back_as_zeros_and_the_generator_decides():
    state, _ = random_clip()
    budgets = constant_budgets(LENGTH, 20, 2)
    picks = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        dropped = state
        for budget in budgets:
            dropped = drop_at_random(dropped, budget, generator)
        picks.append(dropped)
    assert torch.equal(picks[0].tokens, picks[1].tokens)
    assert not torch.equal(picks[0].tokens, picks[2].tokens)
    back, gone = unmerge(picks[0].tokens, picks[0].source), picks[0].source < 0
    assert gone.sum(1).tolist() == [40, 40]
    assert (back[gone] == 0).all()
    assert torch.equal(back[~gone], state.tokens[~gone])


@pytest.mark.parametrize("method", ["tube-random", "tube-drop"])
def test_chance_picks_the_same_places_in_every_frame_of_a_tube(method):
    state, metric = random_clip()
    merged = run_stages(state, metric, merge_budgets(LENGTH, 4, 0.7, 2, pair_groups=False), method=method)
    rows_and_columns = merged.positions[..., 1:].unflatten(1, (4, -1))
    assert torch.equal(rows_and_columns, rows_and_columns[:, :1].expand_as(rows_and_columns))
    frames = torch.arange(4.0).double().repeat_interleave(merged.tokens.shape[1] // 4)
    assert torch.equal(merged.positions[..., 0], frames.expand(2, -1))
    other = run_stages(state, metric, merge_budgets(LENGTH, 4, 0.7, 2, pair_groups=False), method=method)
    assert not torch.equal(merged.tokens, other.tokens)
    back, gone = unmerge(merged.tokens, merged.source), merged.source < 0
    assert gone.any() == (method == "tube-drop")
    if method == "tube-drop":
        assert torch.equal(back[~gone], state.tokens[~gone])


@pytest.mark.parametrize("method", TUBE_METHODS)
def test_a_tube_refuses_a_budget_that_joins_frames(method):
    state, metric = random_clip()
    with pytest.raises(ValueError, match=r"frames of the tokens apart; the budget goes from 4 to 2"):
        merge_tokens(state, metric, merge_budget(LENGTH, 4, 0.7), method=method)


def test_random_pairs_come_from_the_generator_and_not_from_the_metric():
    state, metric = random_clip()
    budget = merge_budget(LENGTH, 4, 0.7)

    def sources(metric: torch.Tensor, seed: int) -> torch.Tensor:
        return merge_tokens(
            state, metric, budget, method="random", generator=torch.Generator().manual_seed(seed)
        ).source

    assert torch.equal(sources(metric, 1), sources(metric.flip(1), 1))
    assert not torch.equal(sources(metric, 1), sources(metric, 2))


# --- lossless merging: sizes in attention and in the mean ---


def toy_logits(state, weights, alpha, weighted):
    """One attention block, an MLP and a mean over tokens that may stand for several."""
    query, key, value = ((state.tokens @ weight)[:, None] for weight in weights[:3])
    inputs = add_size_channel(query, key, value, state.sizes, alpha)
    answer = nn.functional.scaled_dot_product_attention(*inputs[:3], scale=inputs.scale)[:, 0, :, : inputs.head_dim]
    hidden = state.tokens + answer
    hidden = hidden + (hidden @ weights[3]).tanh()
    return size_weighted_mean(hidden, state.sizes) if weighted else hidden.mean(1)


def test_merging_duplicates_is_lossless_and_only_with_sizes_in_attention_and_mean():
    state = start_merging(torch.randn(1, 24, 8, dtype=torch.float64).repeat(1, 4, 1), GRID)
    weights = torch.randn(4, 8, 8, dtype=torch.float64) / 2
    merged = merge_match(state, state.tokens, merge_budget(LENGTH, 4, 0.75, temporal_share=1.0))
    assert set(merged.sizes.unique().tolist()) == {1, 2}  # only a part is merged: an even merge would hide errors
    before = toy_logits(state, weights, 1.0, True)
    torch.testing.assert_close(toy_logits(merged, weights, 1.0, True), before)
    assert (toy_logits(merged, weights, 0, True) - before).abs().max() > 1e-3
    assert (toy_logits(merged, weights, 1.0, False) - before).abs().max() > 1e-3


# --- symmetries ---


def sorted_rows(state, b=0):
    rows = torch.cat((state.tokens[b], state.sizes[b, :, None], state.positions[b], state.anchors[b]), dim=-1)
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("settings", [MergeSettings(), SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_the_order_in_which_a_group_is_stored_does_not_matter(gated, settings):
    # 15 places, 8 receivers: in odd frames one of them is a source by colour and a receiver by its place alone
    state, metric = random_clip(batch=1, grid=(4, 3, 5))
    gate = torch.randint(0, 2, (1, 60)).double() if gated else None
    budget = merge_budget(60, 4, 0.6)
    order = torch.cat([15 * group + torch.randperm(15) for group in range(4)])
    shuffled = state._replace(tokens=state.tokens[:, order], positions=state.positions[:, order])
    shuffled = shuffled._replace(anchors=shuffled.positions)
    merged = merge_match(state, metric, budget, settings, gate)
    other = merge_match(shuffled, metric[:, order], budget, settings, None if gate is None else gate[:, order])
    torch.testing.assert_close(sorted_rows(merged), sorted_rows(other), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["match", "tube", "tome"])
def test_a_clip_does_not_depend_on_its_batch_mates(method):
    state, metric = random_clip(batch=3)
    budgets = merge_budgets(LENGTH, 4, 0.7, 2, pair_groups=method not in TUBE_METHODS)
    merged = run_stages(state, metric, budgets, SOFT, method)
    turned = start_merging(state.tokens[[2, 0]], GRID)
    other = run_stages(turned, metric[[2, 0]], budgets, SOFT, method)
    for part, expected in zip(other[:5], merged[:5], strict=True):
        torch.testing.assert_close(part, expected[[2, 0]])


def test_moving_the_grid_moves_positions_and_nothing_else():
    state, metric = random_clip()
    offset = torch.tensor([4.0, 3.0, -5.0]).double()
    moved = state._replace(positions=state.positions + offset, anchors=state.anchors + offset)
    budgets = merge_budgets(LENGTH, 4, 0.7, 2)
    merged, other = run_stages(state, metric, budgets), run_stages(moved, metric, budgets)
    assert torch.equal(merged.tokens, other.tokens)
    assert torch.equal(merged.sizes, other.sizes)
    torch.testing.assert_close(other.positions, merged.positions + offset)
    torch.testing.assert_close(other.positions - other.anchors, merged.positions - merged.anchors, atol=1e-12, rtol=0)


def test_the_checkerboard_gives_every_source_all_its_neighbours_as_receivers():
    state, _ = random_clip(batch=1, grid=(2, 4, 4))
    order = checkerboard_order(state.positions.unflatten(1, (2, -1)))
    for group in range(2):
        receivers = {divmod(i, 4) for i in order[0, group, :8].tolist()}
        assert receivers == {(y, x) for y in range(4) for x in range(4) if (group + y + x) % 2 == 0}
        assert order[0, group, :8].tolist() == sorted(order[0, group, :8].tolist())


# --- motion ---


def moving_object(backwards=False):
    """An object crosses a static background by one column a frame, row 7, columns 2 to 9; every place looks its own."""
    frames, rows, columns = grid = (8, 9, 12)
    place_names = torch.eye(rows * columns + 1, dtype=torch.float64)
    background = place_names[:-1] + 0.1 * place_names[:-1].sum(0)
    looks = background.repeat(frames, 1, 1)
    for frame in range(frames):
        column = 9 - frame if backwards else 2 + frame
        looks[frame, 7 * columns + column] = place_names[-1]
    state = start_merging(looks.flatten(0, 1)[None], grid)
    for budget in merge_budgets(state.tokens.shape[1], frames, 0.5, 3, temporal_share=1.0):
        state = merge_match(state, state.tokens, budget)
    return state


@pytest.mark.parametrize("backwards", [False, True])
def test_a_moving_object_ends_as_one_token_that_knows_its_velocity(backwards):
    state = moving_object(backwards)
    assert state.groups == 1
    object_token = state.tokens[0, :, -1].argmax()
    assert state.sizes[0, object_token] == 8
    assert state.positions[0, object_token].tolist() == [3.5, 7, 5.5]
    motion = motion_features(state)[0, object_token] * torch.tensor([8.0, 9, 12, 8, 9, 12, 1]).double()
    torch.testing.assert_close(motion[3:6], torch.tensor([3.5, 0, -3.5 if backwards else 3.5]).double())
    torch.testing.assert_close(motion[6], torch.tensor(8.0).double().log())
    still = (state.positions - state.anchors)[0, (state.sizes[0] == 8) & (state.positions[0, :, 1] != 7)]
    assert len(still) > 90  # what the object uncovers has to go somewhere
    torch.testing.assert_close(still, torch.tensor([3.5, 0, 0]).double().expand_as(still))


@pytest.mark.parametrize("temporal_share", [0.3, 1.0])
def test_motion_never_points_back_in_time(temporal_share):
    state, metric = random_clip()
    merged = run_stages(state, metric, merge_budgets(LENGTH, 4, 0.6, 2, temporal_share))
    assert (motion_features(merged)[..., 3] >= 0).all()
    assert (motion_features(merged)[..., 3] > 0).any()


# --- gradients ---


def test_gradients_reach_every_token_and_the_metric_only_through_a_soft_choice():
    budgets = merge_budgets(LENGTH, 4, 0.7, 1)
    for top_q in (1, 4):
        state, metric = random_clip()
        tokens, metric = state.tokens.requires_grad_(), metric.requires_grad_()
        meta_weight = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        gate = torch.zeros(2, LENGTH, dtype=torch.float64, requires_grad=True)
        settings = MergeSettings(top_q=top_q, temperature=0.2, meta_weight=meta_weight)
        merged = merge_match(state, metric, budgets[0], settings, gate)
        loss = (merged.tokens**2).sum()
        grads = torch.autograd.grad(loss, (tokens, gate, metric, meta_weight), allow_unused=True)
        assert (grads[0].abs().sum(-1) > 0).all()
        assert (grads[1] != 0).any()
        for grad in grads[2:]:
            assert (grad is None or (grad == 0).all()) == (top_q == 1)


@pytest.mark.parametrize("method", ["match", "tube", "pool"])
def test_gradients_pass_gradcheck_away_from_ties(method):
    grid, settings = (2, 2, 4), MergeSettings(top_q=2, temperature=0.5, meta_weight=0.2, meta_grid=(1, 2, 2))
    budget = merge_budget(16, 2, 0.6, pair_groups=method not in TUBE_METHODS)
    if method == "pool":
        budget = pool_budget(grid, settings.meta_grid, 1)

    def stage(tokens, metric):
        merged = merge_tokens(start_merging(tokens, grid), metric, budget, settings, method)
        return merged.tokens, merged.sizes, motion_features(merged)

    tokens = torch.randn(1, 16, 2, dtype=torch.float64, requires_grad=True)
    metric = torch.randn(1, 16, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stage, (tokens, metric), fast_mode=True)


# --- global meta tokens ---


def test_global_meta_tokens_survive_empty_cells_and_count_equal_tokens_by_size():
    state, metric = random_clip(batch=1)
    metas, assignment = global_meta_tokens(metric, state.sizes, state.positions, GRID, (8, 4, 4))
    assert metas.shape == (1, 128, 6)
    assert not assignment.isnan().any()
    torch.testing.assert_close(assignment.sum(-1), torch.ones(1, LENGTH).double())
    assert (assignment.sum(1) == 0).sum() == 64  # 4 frames, 8 cells over time: half of them start empty and stay so
    torch.testing.assert_close(
        assignment[0],
        slow_metas(metric[0], state.sizes[0], state.positions[0], GRID, MergeSettings(meta_grid=(8, 4, 4))),
    )

    order = torch.randperm(LENGTH)
    _, shuffled = global_meta_tokens(metric[:, order], state.sizes, state.positions[:, order], GRID, (8, 4, 4))
    torch.testing.assert_close(shuffled, assignment[:, order])

    # two equal tokens of one cell, or one token of size 2
    metric[0, 1] = metric[0, 0]
    metas, _ = global_meta_tokens(metric, state.sizes, state.positions, GRID)
    sizes = state.sizes[:, 1:].clone()
    sizes[:, 0] = 2
    joined, _ = global_meta_tokens(metric[:, 1:], sizes, state.positions[:, 1:], GRID)
    torch.testing.assert_close(joined, metas)


# --- attention with sizes ---


def attend(implementation, query, key, value, scale, bias=None):
    if implementation == "sdpa":
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    logits = query @ key.transpose(-1, -2) * scale
    return (logits if bias is None else logits + bias).softmax(-1) @ value


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("head_dim", [8, 13, 64])
def test_the_size_channel_equals_a_mask_of_log_sizes(head_dim, dtype, tolerance, implementation):
    query, key, value = torch.randn(3, 2, 3, 7, head_dim, dtype=dtype)
    sizes = torch.randint(1, 40, (2, 7)).to(dtype)
    for alpha in (1.0, 0.5, torch.tensor(0.7)):
        inputs = add_size_channel(query[:, :, :4], key, value, sizes, alpha)
        assert all(part.shape[-1] % 8 == 0 and part.shape[-1] <= head_dim + 9 for part in inputs[:3])
        answer = attend(implementation, *inputs[:3], inputs.scale)[..., : inputs.head_dim]
        bias = (alpha * sizes.log())[:, None, None]
        expected = attend(implementation, query[:, :, :4], key, value, head_dim**-0.5, bias.to(dtype))
        torch.testing.assert_close(answer, expected, atol=tolerance, rtol=tolerance)
    inputs = add_size_channel(query, key, value, torch.ones_like(sizes))
    answer = attend(implementation, *inputs[:3], inputs.scale)[..., :head_dim]
    torch.testing.assert_close(answer, attend(implementation, query, key, value, head_dim**-0.5))
    assert add_size_channel(query, key, value, sizes, alpha=0)[:3] == (query, key, value)


def test_a_key_of_size_two_draws_as_much_attention_as_the_key_twice():
    query, key, value = torch.randn(3, 1, 2, 5, 8, dtype=torch.float64)
    sizes = torch.tensor([[2.0, 1, 1, 1, 1]]).double()
    inputs = add_size_channel(query, key, value, sizes)
    answer = attend("sdpa", *inputs[:3], inputs.scale)[..., :8]
    twice = [torch.cat((part, part[:, :, :1]), dim=2) for part in (key, value)]
    torch.testing.assert_close(answer, attend("sdpa", query, *twice, 8**-0.5))


def test_the_second_size_channel_holds_what_bfloat16_rounds_off():
    query, key, value = torch.zeros(3, 1, 1, 50, 64, dtype=torch.bfloat16)
    sizes = torch.arange(1.0, 51)[None]
    inputs = add_size_channel(query, key, value, sizes)
    assert inputs.key.dtype == inputs.query.dtype == torch.bfloat16
    logits = (inputs.query.float() @ inputs.key.float().transpose(-1, -2) * inputs.scale)[0, 0, 0]
    torch.testing.assert_close(logits, sizes[0].log(), atol=1e-4, rtol=1e-4)


# --- dtypes, compilers ---


@pytest.mark.parametrize("settings", [MergeSettings(), SOFT], ids=["hard", "soft"])
def test_bfloat16_tokens_keep_exact_sizes_and_drift_little(settings):
    state, metric = random_clip(dtype=torch.bfloat16)
    budget = merge_budget(LENGTH, 4, 0.7)
    low = merge_match(state, metric, budget, settings)
    high = merge_match(state._replace(tokens=state.tokens.float()), metric, budget, settings)
    assert low.tokens.dtype == torch.bfloat16
    assert low.sizes.dtype == low.positions.dtype == low.anchors.dtype == torch.float32
    assert torch.equal(low.sizes, high.sizes)
    assert (low.tokens - high.tokens).abs().max() < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        inside = merge_match(state._replace(tokens=state.tokens.float()), metric, budget, settings)
    for part, expected in zip(inside[:5], high[:5], strict=True):
        assert torch.equal(part, expected)


class Stages(nn.Module):
    def __init__(self, method, settings):
        super().__init__()
        self.method, self.settings = method, settings
        self.budgets = merge_budgets(LENGTH, 4, 0.7, 1, pair_groups=method not in TUBE_METHODS)
        if method == "pool":
            self.budgets = (pool_budget(GRID, settings.meta_grid, 2),)

    def forward(self, tokens, keys):
        state = start_merging(tokens, GRID)
        state = run_stages(state, metric_from_keys(keys), self.budgets, self.settings, self.method)
        return *state[:5], motion_features(state), unmerge(state.tokens, state.source)


@pytest.mark.parametrize("method", ["match", "tube", "pool", "tome"])
def test_stages_compile_without_breaks_and_export(method):
    stages = Stages(method, MergeSettings(top_q=2, meta_weight=0.2, meta_grid=(1, 2, 3)))
    tokens, keys = torch.randn(2, LENGTH, 5), torch.randn(2, 3, LENGTH, 6)
    expected = stages(tokens, keys)
    torch._dynamo.reset()
    compiled = torch.compile(stages, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            torch.manual_seed(seed)
            tokens, keys = torch.randn(2, LENGTH, 5), torch.randn(2, 3, LENGTH, 6)
            expected = stages(tokens, keys)
            for part, other in zip(compiled(tokens, keys), expected, strict=True):
                torch.testing.assert_close(part, other)
    exported = torch.export.export(stages, (tokens, keys)).module()
    for part, other in zip(exported(tokens, keys), expected, strict=True):
        torch.testing.assert_close(part, other)


def test_merging_runs_on_the_meta_device_where_macs_are_counted():
    with torch.device("meta"):
        state = start_merging(torch.empty(1, LENGTH, 5), GRID)
        merged = run_stages(state, torch.empty(1, LENGTH, 6), merge_budgets(LENGTH, 4, 0.7, 2), SOFT)
    assert merged.tokens.shape == (1, merge_budgets(LENGTH, 4, 0.7, 2)[-1].length_out, 5)


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((96, 4, 0.0), "keep_ratio"),
        ((96, 4, 1.01), "keep_ratio"),
        ((96, 4, float("nan")), "keep_ratio"),
        ((96, 4, 0.5, 1.5), "temporal_share"),
        ((97, 4, 0.5), "do not split evenly"),
        ((96, 4, 0.1), "asks for 86 merges among 96 tokens"),
        ((96, 3, 0.4), "can do 48"),
        ((96, 4, 0.4, 1.0), "temporal_share 1.0 can do 48"),
    ],
    ids=str,
)
def test_impossible_budgets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        merge_budget(*arguments)


def test_what_does_not_fit_is_refused_with_what_is_needed():
    state, metric = random_clip()
    budget, tube = merge_budget(LENGTH, 4, 0.7), merge_budget(LENGTH, 4, 0.7, pair_groups=False)
    refusals = {
        "Unknown merge method 'fold'": lambda: merge_tokens(state, metric, budget, method="fold"),
        "The budget is for 92 tokens": lambda: merge_match(state, metric, merge_budget(92, 4, 0.7)),
        "2 temporal groups, the tokens have 4": lambda: merge_match(state, metric, merge_budget(LENGTH, 2, 0.7)),
        "The metric must be": lambda: merge_match(state, metric[:, 1:], budget),
        "The gate must be": lambda: merge_match(state, metric, budget, gate=metric),
        "has no saliency gate": lambda: merge_tokens(state, metric, budget, method="tome", gate=metric[..., 0]),
        "keeps the 4 frames": lambda: merge_tube(state, metric, budget),
        "make it with pool_budget": lambda: merge_pool(state, metric, tube),
        "meta grid of": lambda: pool_budget(GRID, (5, 2, 2), 2),
        "into 3 windows": lambda: pool_budget(GRID, (2, 2, 2), 3),
        "not 49": lambda: constant_budgets(LENGTH, 49, 1),
        "frame-major and without class token": lambda: start_merging(torch.zeros(2, LENGTH + 1, 5), GRID),
        "top_q must be": lambda: merge_match(state, metric, budget, MergeSettings(top_q=0)),
        "sizes of": lambda: add_size_channel(*torch.zeros(3, 1, 2, 7, 8), torch.ones(1, 8)),
    }
    for message, attempt in refusals.items():
        with pytest.raises(ValueError, match=message):
            attempt()


# --- properties of budgets -------------------------------------------------------------------------------------------


BUDGETS = {
    "groups": st.integers(1, 16),
    "per_group": st.integers(1, 300),
    "temporal_share": st.floats(0, 1),
    "pair_groups": st.booleans(),
}


def budget_or_none(*arguments):
    """None where one stage cannot merge so much, which is said with an error."""
    try:
        return merge_budget(*arguments)
    except ValueError as error:
        if "one stage with temporal_share" not in str(error):
            raise
        return None


@given(**BUDGETS, keep_ratio=st.floats(0.01, 1))
def test_a_budget_keeps_to_what_a_stage_can_do(groups, per_group, temporal_share, pair_groups, keep_ratio):
    tokens = groups * per_group
    budget = budget_or_none(tokens, groups, keep_ratio, temporal_share, pair_groups)
    assume(budget is not None)
    assert 0 <= budget.spatial <= per_group // 2
    assert 0 <= budget.temporal <= per_group - budget.spatial
    assert budget.groups_out in (groups, groups // 2)
    assert budget.length_out == tokens - budget.spatial * groups - budget.temporal * (groups // 2)
    assert budget.length_out % budget.groups_out == 0
    assert budget.length_out > 0
    assert abs(budget.length_out - keep_ratio * tokens) < groups + 0.5


@given(**BUDGETS, keep_ratios=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_who_keeps_more_has_no_fewer_tokens(groups, per_group, temporal_share, pair_groups, keep_ratios):
    few, many = (
        budget_or_none(groups * per_group, groups, ratio, temporal_share, pair_groups) for ratio in sorted(keep_ratios)
    )
    assume(few is not None)
    assert many is not None
    assert few.length_out <= many.length_out


@given(**BUDGETS, keep_ratio=st.floats(0.5, 1), stages=st.integers(1, 4))
def test_stages_go_on_where_the_one_before_ended(groups, per_group, temporal_share, pair_groups, keep_ratio, stages):
    try:
        budgets = merge_budgets(groups * per_group, groups, keep_ratio, stages, temporal_share, pair_groups)
    except ValueError:
        assume(False)
    assert budgets == merge_budgets(groups * per_group, groups, keep_ratio, stages, temporal_share, pair_groups)
    for before, after in zip(budgets, budgets[1:], strict=False):
        assert (after.length_in, after.groups_in) == (before.length_out, before.groups_out)
        assert after.length_out <= before.length_out
