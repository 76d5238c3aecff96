"""Lists of labelled videos in every format, from folders, files and data sets, and their division."""

import json
from pathlib import Path

import pytest

from hf_tps.training.hub_datasets import read_hub_dataset
from hf_tps.training.video_lists import check_files, read_class_folders, read_list, split_off_validation
from tests.video_folders import write_colour_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    write_colour_folders(folder, (3, 2, 2))
    return folder


def test_class_folders_give_sorted_classes(folder):
    videos = read_class_folders(folder)
    assert videos.class_names == ["blue", "green", "red"]
    assert videos.label_ids(videos.class_names) == [0, 0, 0, 1, 1, 2, 2]
    assert videos.names[3] == "green/0.mp4"
    assert all(Path(path).is_file() for path in videos.sources)


def test_a_folder_without_class_folders_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match="<class name>/<video>.mp4"):
        read_class_folders(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_class_folders(tmp_path / "absent")


@pytest.mark.parametrize(
    ("suffix", "text", "rows"),
    [
        (".txt", "a/one.mp4 4\nb/two words.mp4 0\n", [("a/one.mp4", "4"), ("b/two words.mp4", "0")]),
        (".csv", "one.mp4,4\n\ntwo.mp4,0\n", [("one.mp4", "4"), ("two.mp4", "0")]),
        (".csv", "one.mp4 4\na, b.mp4 0\n", [("one.mp4", "4"), ("a, b.mp4", "0")]),
        (".txt", "one.mp4\tarm wrestling\n", [("one.mp4", "arm wrestling")]),
        (".csv", 'path,label\n"a, b.mp4",yoga\n', [("a, b.mp4", "yoga")]),
        (".csv", "split,label,video_path\nval,yoga,one.mp4\n", [("one.mp4", "yoga")]),
        (
            ".csv",
            "label,youtube_id,time_start,time_end,split\nyoga,-abc_,3,13,val\n",
            [("-abc__000003_000013", "yoga")],
        ),
        (".json", [{"vid_name": "one.mp4", "label": 4, "start_frame": 0}], [("one.mp4", "4")]),
        (
            ".json",
            [{"id": "77", "label": "holding a cup", "template": "Holding [something]"}],
            [("77", "Holding something")],
        ),
    ],
    ids=["blanks", "commas", "comma in path", "tab", "header quoted", "header", "kinetics", "diving48", "ssv2"],
)
def test_every_list_format_is_read(suffix, text, rows, tmp_path):
    path = tmp_path / f"list{suffix}"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    videos = read_list(path)
    assert list(zip(videos.names, videos.labels, strict=True)) == rows


def test_names_without_suffix_are_found_and_labels_follow_the_file_with_names(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "77.webm").write_bytes(b"x")
    (tmp_path / "list.json").write_text(json.dumps([{"id": "77", "template": "Holding [something]"}]))
    (tmp_path / "labels.json").write_text(json.dumps({"Holding something": "1", "Approaching something": "0"}))
    videos = read_list(tmp_path / "list.json", tmp_path / "videos", tmp_path / "labels.json")
    assert videos.sources == [str(tmp_path / "videos" / "77.webm")]
    assert videos.class_names == ["Approaching something", "Holding something"]
    assert videos.label_ids(videos.class_names) == [1]


def test_numbers_become_names_by_the_file_with_names(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 1\nb.mp4 0\n")
    (tmp_path / "names.txt").write_text("walk\nrun\n")
    videos = read_list(tmp_path / "list.txt", class_names=tmp_path / "names.txt")
    assert videos.labels == ["run", "walk"]
    assert videos.class_names == ["walk", "run"]


def test_numbers_sort_as_numbers_and_leave_gaps(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 10\nb.mp4 2\n")
    videos = read_list(tmp_path / "list.txt")
    assert len(videos.class_names) == 11
    assert videos.label_ids(videos.class_names) == [10, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 1\nb.mp4\n", "line 2"),
        ("a.mp4,300,1\nb.mp4,200,0\n", "line 1"),
        ("", "names no videos"),
    ],
)
def test_what_is_no_list_is_refused_by_line(text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_list(tmp_path / "list.csv")


def test_labels_beyond_the_names_are_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 2\n")
    (tmp_path / "names.txt").write_text("walk\nrun\n")
    with pytest.raises(ValueError, match="2 class names"):
        read_list(tmp_path / "list.txt", class_names=tmp_path / "names.txt")


def test_unknown_labels_are_named(folder):
    with pytest.raises(ValueError, match="'green', 'red'"):
        read_class_folders(folder).label_ids(["blue", "yellow"])


def test_validation_is_split_off_without_overlap(folder):
    videos = read_class_folders(folder)
    train, validation = split_off_validation(videos, 0.3, seed=1)
    assert sorted(train.names + validation.names) == sorted(videos.names)
    assert len(validation) == 2
    assert train.sources[0].endswith(train.names[0])
    with pytest.raises(ValueError, match="at least one"):
        split_off_validation(videos, 0.01, seed=1)


def test_missing_files_show_at_the_start(folder, tmp_path):
    first = sorted(folder.rglob("*.mp4"))[0]
    (tmp_path / "list.txt").write_text(f"{first} 0\nabsent.mp4 1\n")
    videos = read_list(tmp_path / "list.txt")
    check_files(videos, "skip")
    with pytest.raises(ValueError, match="1 of 2 listed videos are missing"):
        check_files(videos, "error")
    with pytest.raises(ValueError, match="video_dir"):
        check_files(videos.select([1]), "skip")


def test_a_hub_dataset_gives_bytes_or_paths_undecoded(folder):
    from datasets import ClassLabel, Dataset, Features, Video

    paths = sorted(folder.rglob("*.mp4"))
    features = Features({"clip": Video(decode=False), "action": ClassLabel(names=["red", "green", "blue"])})
    videos = [{"path": str(paths[0]), "bytes": None}, {"path": None, "bytes": paths[-1].read_bytes()}]
    dataset = Dataset.from_dict({"clip": videos, "action": [2, 0]}, features=features)
    read = read_hub_dataset(dataset.cast_column("clip", Video()), "org/data")
    assert read.class_names == ["red", "green", "blue"]
    assert read.labels == ["blue", "red"]
    assert read.sources[0] == str(paths[0])
    assert read.sources[1] == paths[-1].read_bytes()
    with pytest.raises(ValueError, match="video_column must name one of them, not 'film'"):
        read_hub_dataset(dataset, "org/data", video_column="film")
    # reading all of it to see whether files are missing would take hours
    selected = read.select([1])
    selected.sources.items = None
    check_files(selected, "error")
