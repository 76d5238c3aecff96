"""Lists of labelled videos in every format, clips that hang on seed, epoch and place alone, broken videos, the cache."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import hf_tps
from hf_tps.training.data import (
    IGNORED_LABEL,
    BrokenVideos,
    ClipReader,
    TrainingBatches,
    VideoDataset,
    check_files,
    collate,
    never_flipped,
    read_class_folders,
    read_hub_dataset,
    read_list,
    split_off_validation,
)
from hf_tps.training.frame_cache import FrameCache
from hf_tps.video_reading import read_video
from tests.video_files import moving_frames, write_video
from tests.video_folders import COLOURS, write_colour_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    write_colour_folders(folder, (3, 2, 2))
    return folder


@pytest.fixture
def processor():
    size = {"height": 16, "width": 16}
    return hf_tps.TPSVideoProcessor(num_frames=4, size={"shortest_edge": 16}, crop_size=size)


def dataset_of(folder, processor, **kwargs) -> VideoDataset:
    videos = read_class_folders(folder)
    return VideoDataset(videos, videos.class_names, ClipReader(processor), **kwargs)


# --- lists -----------------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="--video_column_name"):
        read_hub_dataset(dataset, "org/data", video_column="film")


def test_validation_is_split_off_without_overlap(folder):
    videos = read_class_folders(folder)
    train, validation = split_off_validation(videos, 0.3, seed=1)
    assert sorted(train.names + validation.names) == sorted(videos.names)
    assert len(validation) == 2
    assert train.sources[0].endswith(train.names[0])
    with pytest.raises(ValueError, match="at least one"):
        split_off_validation(videos, 0.01, seed=1)


def test_left_and_right_classes_of_ssv2_are_never_flipped(root):
    names = (root / "conversion" / "labels" / "something-something-v2.txt").read_text().splitlines()
    assert never_flipped(names, ["left_right"]) == {86, 87, 93, 94, 166, 167}
    assert never_flipped(names, ["3", names[5]]) == {3, 5}
    with pytest.raises(ValueError, match="no class name"):
        never_flipped(names, ["somewhere"])


# --- clips -----------------------------------------------------------------------------------------------------------


def test_a_training_clip_hangs_on_its_seed_alone(folder, processor):
    dataset = dataset_of(folder, processor)
    first = dataset[(1, 5)]["pixel_values"]
    torch.rand(7)
    assert torch.equal(dataset[(1, 5)]["pixel_values"], first)
    assert any(not torch.equal(dataset[(1, seed)]["pixel_values"], first) for seed in range(6, 12))


def test_workers_change_nothing(folder, processor):
    dataset = dataset_of(folder, processor)

    def clips(workers: int) -> torch.Tensor:
        batches = TrainingBatches(len(dataset), batch_size=2, seed=3, num_steps=4)
        # forked after this process has decoded videos, which must not make the workers wait forever
        loader = DataLoader(
            dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate, timeout=60 * bool(workers)
        )
        return torch.stack([batch["pixel_values"] for batch in loader])

    assert torch.equal(clips(0), clips(2))


def test_training_frames_are_random_within_their_segments(tmp_path, processor):
    write_video(tmp_path / "v.mp4", moving_frames(40))
    frames, _ = read_video(tmp_path / "v.mp4")
    clips = ClipReader(processor)
    whole = {"do_sample_frames": False, "return_tensors": "pt"}
    every = processor(frames, **whole).pixel_values[0]
    chosen = set()
    for seed in range(20):
        clip = clips.training_clip(str(tmp_path / "v.mp4"), 0, seed)
        numbers = [int((every - frame).abs().flatten(1).sum(1).argmin()) for frame in clip]
        borders = (0, 10, 20, 29, 39)
        assert all(a <= number <= b for a, number, b in zip(borders, numbers, borders[1:], strict=False))
        chosen.add(tuple(numbers))
    assert len(chosen) > 10


def test_a_cached_clip_is_the_decoded_one(folder, processor, tmp_path):
    videos = read_class_folders(folder)
    cache = FrameCache.of(videos, tmp_path)
    plain, cached = dataset_of(folder, processor), dataset_of(folder, processor, frames=cache)
    assert torch.equal(plain[(4, 9)]["pixel_values"], cached[(4, 9)]["pixel_values"])
    assert torch.equal(plain[4]["pixel_values"], cached[4]["pixel_values"])


def test_the_cache_is_made_once_and_anew_for_other_files(folder, tmp_path):
    videos = read_class_folders(folder)
    FrameCache.of(videos, tmp_path)
    (made,) = tmp_path.iterdir()
    index = made / "index.json"
    index.write_text(index.read_text() + " ")
    FrameCache.of(videos, tmp_path)
    assert index.read_text().endswith(" ")
    FrameCache.of(videos.select([0, 1]), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


# --- order -----------------------------------------------------------------------------------------------------------


def taken(num_videos: int = 11, steps: int = 6, **kwargs) -> list:
    return list(TrainingBatches(num_videos, seed=1, num_steps=steps, **kwargs))


def test_an_epoch_shows_every_video_at_most_once_and_the_next_one_another_order():
    batches = taken(batch_size=3)
    epochs = [[index for batch in batches[start : start + 3] for index, _ in batch] for start in (0, 3)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_two_processes_share_what_one_would_see():
    one = taken(batch_size=4)
    ranks = [taken(batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == one
    accumulated = taken(batch_size=2, accumulation=2)
    assert [a + b for a, b in zip(accumulated[::2], accumulated[1::2], strict=True)] == one


def test_a_later_start_gives_the_rest_of_the_same_run():
    assert taken(batch_size=2, first_step=4, steps=9) == taken(batch_size=2, steps=9)[4:]


def test_a_data_set_smaller_than_a_batch_fills_it():
    (batch,) = taken(num_videos=2, batch_size=5, steps=1)
    assert {index for index, _ in batch} == {0, 1}
    assert len({seed for _, seed in batch}) == 5


# --- broken videos ---------------------------------------------------------------------------------------------------


@pytest.fixture
def half_broken(tmp_path) -> Path:
    write_colour_folders(tmp_path, (1, 1, 1))
    (tmp_path / "blue" / "1.mp4").write_text("no video")
    (tmp_path / "red" / "1.mp4").write_bytes(b"")
    return tmp_path


def test_training_replaces_a_broken_video_and_names_it(half_broken, processor):
    dataset = dataset_of(half_broken, processor)
    item = dataset[(1, 0)]
    assert item["labels"] == 1
    assert item["index"] == 2
    assert item["pixel_values"].shape == (4, 3, 16, 16)
    assert item["broken"][0][0] == "blue/1.mp4"
    assert "not a video" in item["broken"][0][1]


def test_evaluation_leaves_a_broken_video_out_with_the_shape_kept(half_broken, processor):
    batch = collate([dataset_of(half_broken, processor)[index] for index in range(5)])
    assert batch["pixel_values"].shape == (5, 1, 4, 3, 16, 16)
    assert batch["labels"].tolist() == [0, IGNORED_LABEL, 1, 2, IGNORED_LABEL]
    assert [name for name, _ in batch["broken"]] == ["blue/1.mp4", "red/1.mp4"]


def test_a_broken_video_is_logged_once_or_stops_the_run(half_broken, processor, caplog):
    batch = collate([dataset_of(half_broken, processor)[(1, 0)]])
    skip = BrokenVideos("skip")
    skip.check(batch)
    skip.check(batch)
    assert len(skip.reasons) == 1
    assert len([record for record in caplog.records if "blue/1.mp4" in record.getMessage()]) == 1
    with pytest.raises(ValueError, match="blue/1.mp4"):
        BrokenVideos("error").check(batch)


def test_nothing_but_broken_videos_is_an_error(tmp_path, processor):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_text("no video")
    batch = collate([dataset_of(tmp_path, processor)[(0, 0)]])
    with pytest.raises(ValueError, match="None of 1 videos"):
        BrokenVideos("skip").check(batch)


def test_missing_files_show_at_the_start(folder, tmp_path):
    first = sorted(folder.rglob("*.mp4"))[0]
    (tmp_path / "list.txt").write_text(f"{first} 0\nabsent.mp4 1\n")
    videos = read_list(tmp_path / "list.txt")
    check_files(videos, "skip")
    with pytest.raises(ValueError, match="1 of 2 listed videos are missing"):
        check_files(videos, "error")
    with pytest.raises(ValueError, match="--video_dir"):
        check_files(videos.select([1]), "skip")


def test_the_cache_knows_broken_videos(half_broken, processor, tmp_path):
    videos = read_class_folders(half_broken)
    dataset = dataset_of(half_broken, processor, frames=FrameCache.of(videos, tmp_path / "cache"))
    assert "not a video" in dataset[(1, 0)]["broken"][0][1]
    assert dataset[(0, 0)]["pixel_values"].isfinite().all()
    assert set(COLOURS) == set(videos.class_names)
