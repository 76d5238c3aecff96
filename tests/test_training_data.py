"""Clips that hang on seed, epoch and place alone, broken videos, the cache of decoded frames."""

import json
import math
import resource
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch.utils.data import DataLoader
from transformers.video_utils import VideoMetadata

import hf_tps
from hf_tps import video_processing_tps, video_reading
from hf_tps.frame_sampling import sample_frame_indices
from hf_tps.training import data, frame_cache
from hf_tps.training.augmentation import CROPS, AugmentationSettings, ClipAugmentation
from hf_tps.training.data import (
    IGNORED_LABEL,
    BrokenVideos,
    ClipReader,
    TrainingBatches,
    VideoDataset,
    collate,
)
from hf_tps.training.frame_cache import FrameCache
from hf_tps.training.results import write_broken_videos
from hf_tps.training.video_lists import read_class_folders
from hf_tps.video_reading import read_video
from tests.comparison import assert_close_to_spread
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

    assert_close_to_spread(clips(2), clips(0))  # a worker has one thread


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


@pytest.mark.parametrize("policy", [None, "v0"])
@pytest.mark.parametrize("crop", CROPS)
def test_a_crop_made_while_decoding_is_that_of_the_whole_clip(crop, policy, processor, tmp_path, monkeypatch):
    write_video(tmp_path / "v.mp4", moving_frames(12, 60, 80))
    frames, _ = read_video(tmp_path / "v.mp4")
    settings = AugmentationSettings(
        crop=crop, short_side=(16, 30), auto_augment=policy, rand_augment_ops=1, erasing=0.5
    )
    reader = ClipReader(processor, ClipAugmentation(settings, (16, 16)))
    for frame_bytes in (0, 3 * 60 * 80 * 3, 2**25):  # one frame at a time, three, all
        monkeypatch.setattr(video_reading, "_PREPARED_BYTES", frame_bytes)
        for seed in range(4):
            decoded = reader.training_clip(tmp_path / "v.mp4", 0, seed)
            assert torch.equal(decoded, reader.training_clip(frames, 0, seed))


def test_no_more_than_a_few_large_frames_of_a_training_clip_are_held(processor, tmp_path, monkeypatch):
    write_video(tmp_path / "v.mp4", moving_frames(12, 60, 80))
    monkeypatch.setattr(video_reading, "_PREPARED_BYTES", 2 * 60 * 80 * 3)
    seen = []
    resize = ClipAugmentation._resize
    monkeypatch.setattr(
        ClipAugmentation, "_resize", lambda self, frames, size: seen.append(len(frames)) or resize(self, frames, size)
    )
    reader = ClipReader(processor, ClipAugmentation(AugmentationSettings(), (16, 16)))
    assert len(reader.training_clip(tmp_path / "v.mp4", 0, 0)) == 4
    assert max(seen) <= 2
    assert sum(seen) <= 4


def test_a_video_that_is_asked_again_draws_frames_and_then_the_crop(processor, monkeypatch):
    """The header says 40 frames, decoding finds 30: what was drawn for the crop in between does not count."""
    frames = torch.randint(256, (40, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def read_twice(video, indices, *, prepare):
        prepare(frames[indices(VideoMetadata(total_num_frames=40))[:1]])
        return prepare(frames[indices(VideoMetadata(total_num_frames=30))]), None

    monkeypatch.setattr(data, "read_video", read_twice)
    augmentation = ClipAugmentation(AugmentationSettings(), (16, 16))
    generator = torch.Generator().manual_seed(5)
    for total in (40, 30):
        chosen = sample_frame_indices(total, num_frames=4, training=True, generator=generator)[0]
    expected = augmentation.change_frames(frames[chosen], 0, generator)
    processor.do_rescale = processor.do_normalize = False
    assert torch.equal(ClipReader(processor, augmentation).training_clip("v.mp4", 0, 5), expected)


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


def test_the_cache_knows_broken_videos(half_broken, processor, tmp_path):
    videos = read_class_folders(half_broken)
    dataset = dataset_of(half_broken, processor, frames=FrameCache.of(videos, tmp_path / "cache"))
    assert "not a video" in dataset[(1, 0)]["broken"][0][1]
    assert dataset[(0, 0)]["pixel_values"].isfinite().all()
    assert set(COLOURS) == set(videos.class_names)


@pytest.mark.parametrize(
    "error", [IndexError("tuple index out of range"), RuntimeError("[enforce fail] not enough memory"), MemoryError()]
)
def test_whatever_reading_one_video_raises_is_a_broken_video_of_that_type(error, folder, processor, monkeypatch):
    def read_with_a_fault(video, *arguments, **options):
        if Path(video).match("blue/1.mp4"):
            raise error
        return read_video(video, *arguments, **options)

    monkeypatch.setattr(data, "read_video", read_with_a_fault)
    monkeypatch.setattr(video_processing_tps, "read_video", read_with_a_fault)
    dataset = dataset_of(folder, processor)
    for item in (dataset[(1, 0)], dataset[1]):
        ((name, reason),) = item["broken"]
        assert name == "blue/1.mp4"
        assert reason.startswith(type(error).__name__)
    assert dataset[(1, 0)]["index"] == 2
    assert dataset[1]["labels"] == IGNORED_LABEL


def test_an_error_of_the_program_is_shown_with_its_type_after_so_many_videos(folder, processor, monkeypatch):
    monkeypatch.setattr(ClipReader, "training_clip", lambda *arguments: arguments[0].no_such_thing)
    batch = collate([dataset_of(folder, processor)[(0, 0)]])
    with pytest.raises(ValueError, match="None of 7 videos in a row can be read; .*AttributeError: .*no_such_thing"):
        BrokenVideos("skip").check(batch)


# --- damage to the cache of frames -----------------------------------------------------------------------------------


def cut_frames(made):
    (made / "frames.bin").write_bytes((made / "frames.bin").read_bytes()[:-1])


def change_index(made):
    (made / "index.json").write_text((made / "index.json").read_text().replace('"start": 0', '"start": 1'))


def shorten_index(made):
    entries = json.loads((made / "index.json").read_text())
    size = math.prod(entries[-1]["shape"])
    (made / "index.json").write_text(json.dumps(entries[:-1]))
    (made / "frames.bin").write_bytes((made / "frames.bin").read_bytes()[:-size])


HARM = {
    "cut": cut_frames,
    "no frames": lambda made: (made / "frames.bin").unlink(),
    "no index": lambda made: (made / "index.json").unlink(),
    "no JSON": lambda made: (made / "index.json").write_text("[{"),
    "no list of videos": lambda made: (made / "index.json").write_text('{"start": 0}'),
    "another place": change_index,
    "one video less": shorten_index,
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_cache_is_made_anew_with_a_warning(harm, folder, tmp_path, caplog):
    videos = read_class_folders(folder)
    expected = [frames.clone() for frames in FrameCache.of(videos, tmp_path)]
    (made,) = tmp_path.iterdir()
    HARM[harm](made)
    cache = FrameCache.of(videos, tmp_path)
    assert "decoded anew" in caplog.text
    assert all(torch.equal(*pair) for pair in zip(cache, expected, strict=True))
    assert list(tmp_path.iterdir()) == [made]


def test_two_that_make_the_same_cache_at_the_same_time_both_get_it(folder, tmp_path, monkeypatch):
    videos = read_class_folders(folder)
    decode_all = frame_cache._decode_all

    def other_is_faster(*arguments):
        monkeypatch.setattr(frame_cache, "_decode_all", decode_all)
        FrameCache.of(videos, tmp_path)
        decode_all(*arguments)

    monkeypatch.setattr(frame_cache, "_decode_all", other_is_faster)
    assert len(FrameCache.of(videos, tmp_path)) == len(videos)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_left_is_removed_and_that_of_a_living_one_stays(folder, tmp_path):
    videos = read_class_folders(folder)
    FrameCache.of(videos, tmp_path)
    (complete,) = tmp_path.iterdir()
    shutil.rmtree(complete)
    for name in ("killed", "living"):
        (tmp_path / f".{complete.name}-hf_tps-{name}").mkdir()
        (tmp_path / f".{complete.name}-hf_tps-{name}.lock").touch()
    with FileLock(tmp_path / f".{complete.name}-hf_tps-living.lock"):
        FrameCache.of(videos, tmp_path)
        left = {path.name for path in tmp_path.glob(".*")}
        assert left == {f".{complete.name}-hf_tps-living", f".{complete.name}-hf_tps-living.lock"}


@pytest.mark.parametrize("kilobytes", [0, 0.1, 50])
def test_a_full_disk_leaves_no_part_of_a_cache(kilobytes, folder, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(kilobytes * 1024), before[1]))
    try:
        with pytest.raises(OSError, match="frames-.* cannot be written: .*File too large"):
            FrameCache.of(read_class_folders(folder), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_file_name_cannot_forge_a_line_of_the_log_or_of_the_list(tmp_path, processor, caplog):
    write_colour_folders(tmp_path, (1, 1, 1))
    (tmp_path / "blue" / "x\nerror: all is lost\x1b[2J.mp4").write_text("no video")
    broken = BrokenVideos("skip")
    broken.check(collate([dataset_of(tmp_path, processor)[(1, 0)]]))
    write_broken_videos(tmp_path, broken.reasons)
    for text in (caplog.text, (tmp_path / "broken_videos.txt").read_text()):
        assert len([line for line in text.splitlines() if "all is lost" in line and "x\\nerror" in line]) >= 1
        assert "\x1b" not in text
        assert not any(line.startswith("error") for line in text.splitlines())
