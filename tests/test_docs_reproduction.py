"""docs/reproduction.md against the tables that trainings read: no value is stale, no deviation unnamed."""

import re
from typing import Any

import pytest

from hf_tps.training.published import PUBLISHED
from hf_tps.training.recipes import RECIPES
from tests.conftest import ROOT
from tests.test_training_published import recipe_of

PAGE = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `([\w-]+)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def shown(value: Any) -> str:
    """A value as the page writes it."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(shown, value)) + ")"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def values_of(model: str, data_set: str) -> dict[str, str]:
    """All that a recipe and its test set, by the names of the page."""
    recipe, published = RECIPES[recipe_of(model, data_set)], PUBLISHED[model, data_set]
    views = {"num_clips": published.num_clips, "num_crops": published.num_crops}
    network = {f"{recipe.model_type} {name}": value for name, value in recipe.network.items()}
    named = {**network, **recipe.settings, "total_batch_size": recipe.total_batch_size, **views}
    return {name: shown(value) for name, value in named.items()}


def rows_of(section: str) -> list[list[str]]:
    """Cells of the table's rows: setting, released config, paper, ours, deviation."""
    rows = re.findall(r"^\| `([^`]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", section, re.MULTILINE)
    return [[cell.strip() for cell in row] for row in rows]


def test_every_recipe_has_its_table():
    assert list(SECTIONS) == list(RECIPES)


@pytest.mark.parametrize(("model", "data_set"), PUBLISHED)
def test_the_values_that_the_page_calls_ours_are_those_that_are_trained_with(model, data_set):
    rows = rows_of(SECTIONS[recipe_of(model, data_set)])
    assert len({row[0] for row in rows}) == len(rows)
    assert {name: ours for name, _, _, ours, _ in rows} == values_of(model, data_set)


@pytest.mark.parametrize("name", RECIPES)
def test_what_differs_from_the_release_is_named(name):
    unnamed = [row for row in rows_of(SECTIONS[name]) if row[1] != row[3] and not row[4]]
    assert not unnamed
    listed = re.findall(r"^- (.*?)$(?=\n- |\n\n|\n*\Z)", SECTIONS[name].replace("\n  ", " "), re.MULTILINE | re.DOTALL)
    assert listed == list(RECIPES[name].deviations)
