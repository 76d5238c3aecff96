"""Class names as every script reads them: each layout of a file, and what is refused rather than guessed."""

import json

import pytest

from hf_tps.training.class_names import (
    default_class_names,
    match_labels,
    names_of_directions,
    never_flipped,
    read_class_names,
)

NAMES = ["walk", "run", "stand still"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.txt", "walk\nrun\n stand still \n\n"),
        ("names.txt", "\ufeffwalk\r\nrun\r\nstand still"),
        ("names.json", json.dumps(NAMES)),
        ("names.json", json.dumps({"2": "stand still", "0": "walk", "1": "run"})),
        ("names.json", json.dumps({"stand still": 2, "walk": 0, "run": 1})),
        ("names.json", json.dumps({"stand still": "2", "walk": "0", "run": "1"})),
    ],
    ids=["lines", "byte order mark", "list", "by id", "by name", "by name, ids as text"],
)
def test_every_layout_gives_the_names_by_id(file, content, tmp_path):
    (tmp_path / file).write_bytes(content.encode())
    assert read_class_names(tmp_path / file) == NAMES


def test_names_that_are_numbers_have_the_integers_as_ids(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"1": 0, "2": 1, "0": 2}))
    assert read_class_names(tmp_path / "names.json") == ["1", "2", "0"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("names.txt", "walk\n\nrun\n", "id 1 has an empty one"),
        ("names.txt", "walk\nrun\nwalk\n", "more than once: 'walk'"),
        ("names.txt", "", "is empty"),
        ("names.txt", b"\xff\xfe\x00", "no text in UTF-8"),
        ("names.json", "[", "no JSON"),
        ("names.json", "3", "a JSON list of class names"),
        ("names.json", '["walk", 1]', "a JSON list of class names"),
        ("names.json", '{"0": ["walk"]}', "a JSON list of class names"),
        ("names.json", "{}", "is empty"),
        ("names.json", '{"walk": 0, "run": 2}', "must be 0 to 1"),
        ("names.json", '{"walk": 0, "run": 0}', "must be 0 to 1"),
        ("names.json", '{"0": "walk", "00": "run"}', "must be 0 to 1"),
        ("names.json", '{"walk": 0.5, "run": 1.5}', "a JSON list of class names"),
        ("names.json", '{"0.5": "walk", "1.5": "run"}', "must be 0 to 1"),
        ("names.json", '{"walk": false, "run": true}', "a JSON list of class names"),
        ("names.json", '{"walk": 0, "walk": 1}', "'walk' stands twice"),
        ("names.json", '{"walk": Infinity}', "Infinity is no number"),
        ("names.json", '{"walk": ' + "9" * 5000 + "}", "names.json"),
        ("names.json", "[" * 100_000, "nested too deep"),
        ("names.json", " " * (2**24 + 1), "more than 16,777,216 bytes"),
        ("names.json", '{"0": "1", "1": "2", "2": "0"}', "keys and values could both"),
    ],
)
def test_what_gives_no_name_to_each_id_is_refused(file, content, message, tmp_path):
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_class_names(tmp_path / file)
    assert file in str(error.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.txt"):
        read_class_names(tmp_path / "absent.txt")


def test_numbers_are_ids_and_brackets_do_not_count():
    assert match_labels(["1", "0"], ["walk", "run"], "a.txt") == ["run", "walk"]
    assert match_labels(["Holding [something]"], ["Holding something"], "a.txt") == ["Holding something"]
    with pytest.raises(ValueError, match=r"a\.txt has the labels 2, but there are 2 class names"):
        match_labels(["2"], ["walk", "run"], "a.txt")
    with pytest.raises(ValueError, match=r"a\.txt has 1 labels that are no class names: 'fly'"):
        match_labels(["fly", "run"], ["walk", "run"], "a.txt")


def test_without_a_file_names_are_sorted_and_numbers_leave_no_gaps():
    assert default_class_names(["run", "walk", "run"]) == ["run", "walk"]
    assert default_class_names(["3", "1"]) == ["0", "1", "2", "3"]


def test_left_and_right_classes_of_ssv2_are_never_flipped(root):
    names = (root / "conversion" / "labels" / "something-something-v2.txt").read_text().splitlines()
    assert never_flipped(names, ["left_right"]) == {86, 87, 93, 94, 166, 167}
    assert never_flipped(names, ["3", names[5]]) == {3, 5}
    with pytest.raises(ValueError, match="no class name"):
        never_flipped(names, ["somewhere"])


def test_classes_that_name_a_direction_are_found_by_their_words():
    named = ["pan_left", "rotate-CCW", "TurnRight", "move counterclockwise", "to the left"]
    others = ["pan_up", "bright", "upright", "cleft", "copyright", "zoom_in", "leftover", "accw"]
    assert names_of_directions([*named, *others]) == named
