"""Labelled videos from folders, lists and data sets, and how they become batches.

Two promises:

- **The same clips whatever the machine.** The random choices for a clip (frames, crop, flip, ...) hang on the seed, the
  epoch and the clip's place in the epoch alone: not on the number of workers or processes, nor on whether the run was
  broken off in between.
- **A broken video never ends a run by itself.** It is counted and named; in training another video takes its place, so
  that all batches have one shape; in evaluation it is left out of the scores.
"""

import csv
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

from ..frame_sampling import sample_frame_indices
from ..video_processing_tps import SAMPLING_SETTINGS, TPSVideoProcessor
from ..video_reading import read_video

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".flv", ".ogv", ".ogg", ".wmv", ".asf", ".gif"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".3gp"),
)
# The label of a video that could not be read: what torch's cross-entropy ignores.
IGNORED_LABEL = -100
# So many unreadable videos one after another are no accident.
MAX_BROKEN_IN_A_ROW = 100

_PATH_COLUMNS = ("path", "video", "video_path", "file_name", "filename", "file", "vid_name", "id")
_LABEL_COLUMNS = ("label", "template", "class", "label_name", "class_name", "category")


# ------------------------------------------------------------------------------------------------------------- lists


@dataclass
class LabelledVideos:
    """Videos with the names of their classes.

    Attributes:
        sources: for each video a path or the bytes of the file; read one by one, so it may be lazy.
        names: for each video what messages call it.
        labels: for each video the name of its class; a number as text where the list has numbers only.
        class_names: all classes in the order of their ids.
    """

    sources: Sequence
    names: list[str]
    labels: list[str]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int]) -> "LabelledVideos":
        """The videos with these numbers, the classes unchanged."""
        return LabelledVideos(
            _Selected(self.sources, list(indices)),
            [self.names[i] for i in indices],
            [self.labels[i] for i in indices],
            self.class_names,
        )

    def label_ids(self, class_names: Sequence[str]) -> list[int]:
        """The labels as ids of `class_names`.

        Raises:
            ValueError: naming the labels that are not among the classes. Numbers are taken as ids where they are no
                names and all of them are in range.
        """
        ids = {name: number for number, name in enumerate(class_names)}
        unknown = sorted(set(self.labels) - set(ids))
        if unknown and all(label.isdecimal() and int(label) < len(class_names) for label in set(self.labels)):
            return [int(label) for label in self.labels]
        if unknown:
            raise ValueError(
                f"{len(unknown)} labels are not among the {len(class_names)} classes: {_some(unknown)}. The classes are "
                f"{_some(class_names)}."
            )
        return [ids[label] for label in self.labels]


class _Selected(Sequence):
    def __init__(self, items: Sequence, indices: list[int]):
        self.items, self.indices = items, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        return self.items[self.indices[index]]


def _some(items: Sequence, limit: int = 5) -> str:
    shown = ", ".join(map(repr, list(items)[:limit]))
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")


def read_class_folders(folder: str | Path) -> LabelledVideos:
    """Videos in one folder for each class, `folder/<class>/.../video.mp4`: the layout of `datasets`' videofolder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no class folders with videos.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    paths, labels = [], []
    for class_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        found = sorted(path for path in class_folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        paths += [str(path) for path in found]
        labels += [class_folder.name] * len(found)
    if not paths:
        raise ValueError(f"{folder} has no videos in class folders: needed is {folder}/<class name>/<video>.mp4.")
    names = [os.path.relpath(path, folder) for path in paths]
    return LabelledVideos(paths, names, labels, sorted(set(labels)))


def read_list(path: str | Path, video_dir: str | Path | None = None, class_names: Path | None = None) -> LabelledVideos:
    """Videos from a list file.

    - `.csv`, `.txt`, ...: one video in a line, `path label`, parted by blanks, tabs or commas; with a header line or
      without. A header may also be that of Kinetics (`label,youtube_id,time_start,time_end`).
    - `.json`: records of Something-Something (`id`, `template`), Diving-48 (`vid_name`, `label`), or with `path` and
      `label`.

    Args:
        path: the list.
        video_dir: where relative paths begin; by default at the list's own folder. A name without suffix stands for the
            file of that name.
        class_names: a file with the classes: one name in a line, or JSON `{name: id}`, as Something-Something's labels.json,
            or a JSON list. Without it the classes are the sorted names in the list, or for numbers 0 to the largest.

    Raises:
        FileNotFoundError: if the list, the folder or the file with the classes does not exist.
        ValueError: naming the line, for what is no list.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no list {path}.")
    root = Path(video_dir) if video_dir is not None else path.parent
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root} with videos.")
    rows = _json_rows(path) if path.suffix.lower() == ".json" else _text_rows(path)
    if not rows:
        raise ValueError(f"{path} names no videos.")
    names = [name for name, _ in rows]
    labels = [label for _, label in rows]
    known = None if class_names is None else read_class_names(class_names)
    if known is not None:
        labels = _named(labels, known, path)
    else:
        known = default_class_names(labels)
    return LabelledVideos(_with_suffix(names, root), names, labels, known)


def read_class_names(path: str | Path) -> list[str]:
    """Class names in the order of their ids; see `read_list`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} with class names.")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        loaded = _parse_json(text, path)
        if isinstance(loaded, dict):
            ids = {str(name): int(number) for name, number in loaded.items() if str(number).isdecimal()}
            if sorted(ids.values()) != list(range(len(loaded))):
                raise ValueError(f"{path}: a JSON object of class names must give them the ids 0 to {len(loaded) - 1}.")
            names = sorted(ids, key=ids.get)
        else:
            names = [str(name) for name in loaded]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names or repeated:
        raise ValueError(
            f"{path} must hold class names, each once; repeated: {_some(repeated) or 'none, but it is empty'}."
        )
    return names


def default_class_names(labels: Sequence[str]) -> list[str]:
    """The sorted labels; where all of them are numbers, every number from 0 to the largest."""
    distinct = set(labels)
    if all(label.isdecimal() for label in distinct):
        return [str(number) for number in range(max(map(int, distinct)) + 1)]
    return sorted(distinct)


def _named(labels: list[str], class_names: list[str], path: Path) -> list[str]:
    """Labels as names: numbers are ids, and brackets around a template's place-holders do not count."""
    plain = {_without_brackets(name): name for name in class_names}
    if all(label.isdecimal() for label in set(labels)) and not set(labels) <= set(class_names):
        too_large = sorted({int(label) for label in labels if int(label) >= len(class_names)})
        if too_large:
            raise ValueError(f"{path} has the labels {_some(too_large)}, but there are {len(class_names)} class names.")
        return [class_names[int(label)] for label in labels]
    unknown = sorted({label for label in labels if _without_brackets(label) not in plain})
    if unknown:
        raise ValueError(f"{path} has {len(unknown)} labels that are no class names: {_some(unknown)}.")
    return [plain[_without_brackets(label)] for label in labels]


def _without_brackets(name: str) -> str:
    return name.replace("[", "").replace("]", "")


def _parse_json(text: str, path: Path):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def _json_rows(path: Path) -> list[tuple[str, str]]:
    records = _parse_json(path.read_text(encoding="utf-8-sig"), path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path} must be a JSON list of objects, one for each video.")
    rows = []
    for number, record in enumerate(records):
        name = next((record[column] for column in _PATH_COLUMNS if column in record), None)
        # Something-Something has both: `label` is free text there, and `template` is the class.
        label = record.get("template", next((record[column] for column in _LABEL_COLUMNS if column in record), None))
        if name is None or label is None:
            raise ValueError(
                f"{path}, record {number}: needed are one of {_PATH_COLUMNS} and one of {_LABEL_COLUMNS}, it has "
                f"{sorted(record)}."
            )
        rows.append((str(name), _without_brackets(str(label))))
    return rows


def _text_rows(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not lines:
        return []
    # A header says what parts the columns. Else the last word decides: in `a, b.mp4 3` the label is parted by a blank, in `a b.mp4,7` by the comma.
    delimiter = next((mark for mark in "\t,;" if _is_header(lines[0].split(mark))), None)
    delimiter = delimiter or next((mark for mark in "\t,;" if all(_parts_label(line, mark) for line in lines)), None)
    rows = (
        [list(row) for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
        if delimiter
        else [line.rsplit(None, 1) for line in lines]
    )
    header = _column_names(rows[0])
    if "youtube_id" in header:
        return _kinetics_rows(path, header, rows[1:])
    name_column, label_column = 0, 1
    names = [column for column in _PATH_COLUMNS if column in header]
    labels = [column for column in _LABEL_COLUMNS if column in header]
    if names and labels:
        name_column, label_column = header.index(names[0]), header.index(labels[0])
        rows = rows[1:]
    width = len(header) if names and labels else 2
    for number, row in enumerate(rows, start=len(lines) - len(rows) + 1):
        if len(row) != width or not all(row[column].strip() for column in (name_column, label_column)):
            raise ValueError(
                f"{path}, line {number}: {lines[number - 1][:200]!r} is not `path label` (parted by a blank, a tab or a "
                "comma). Lists with more columns need a header line that names `path` and `label`."
            )
    return [(row[name_column].strip(), row[label_column].strip()) for row in rows]


def _column_names(row: list[str]) -> list[str]:
    return [column.strip().strip('"').lower() for column in row]


def _is_header(row: list[str]) -> bool:
    columns = set(_column_names(row))
    return "youtube_id" in columns or bool(columns & set(_PATH_COLUMNS) and columns & set(_LABEL_COLUMNS))


def _parts_label(line: str, mark: str) -> bool:
    last = line.rpartition(mark)[2]
    return mark in line and not any(last.lower().split(" ")[0].endswith(suffix) for suffix in VIDEO_SUFFIXES)


def _kinetics_rows(path: Path, header: list[str], rows: list[list[str]]) -> list[tuple[str, str]]:
    """Kinetics' own lists; its files are called <youtube id>_<start>_<end>.mp4, seconds with six digits."""
    needed = ("label", "youtube_id", "time_start", "time_end")
    if not set(needed) <= set(header):
        raise ValueError(f"{path}: a Kinetics list has the columns {needed}, this one {header}.")
    columns = [header.index(column) for column in needed]
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            label, video, start, end = (row[column].strip() for column in columns)
            found.append((f"{video}_{int(float(start)):06d}_{int(float(end)):06d}", label))
        except (IndexError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {row} has no {needed}.") from error
    return found


def _with_suffix(names: list[str], root: Path) -> list[str]:
    """Full paths; a name without a video's suffix is completed from what lies in its folder."""
    listed: dict[str, dict[str, str]] = {}
    paths = []
    for name in names:
        path = os.path.join(root, name)
        if not name.lower().endswith(VIDEO_SUFFIXES):
            folder, stem = os.path.split(path)
            if folder not in listed:
                files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
                listed[folder] = {
                    os.path.splitext(file)[0]: file for file in files if file.lower().endswith(VIDEO_SUFFIXES)
                }
            path = os.path.join(folder, listed[folder].get(stem, stem))
        paths.append(path)
    return paths


# -------------------------------------------------------------------------------------------------------- Hub data set


class _VideoColumn(Sequence):
    """The videos of a data set, each as path or bytes, read when asked for."""

    def __init__(self, dataset, column: str):
        self.dataset, self.column = dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        return _path_or_bytes(self.dataset[index][self.column])


def _path_or_bytes(value):
    if isinstance(value, dict):
        return value["path"] if value.get("bytes") is None else value["bytes"]
    return value


def _columns(features, video_column: str | None, label_column: str | None, name: str) -> tuple[str, str]:
    from datasets import ClassLabel, Video

    columns = list(features)
    video_column = video_column or next((c for c in columns if isinstance(features[c], Video)), None)
    video_column = video_column or next((c for c in ("video", "path", "file_name") if c in columns), None)
    label_column = label_column or next((c for c in columns if isinstance(features[c], ClassLabel)), None)
    label_column = label_column or next((c for c in _LABEL_COLUMNS if c in columns), None)
    for wanted, flag in ((video_column, "--video_column_name"), (label_column, "--label_column_name")):
        if wanted not in columns:
            raise ValueError(f"{name} has the columns {columns}: name the right one with {flag} (it is now {wanted}).")
    return video_column, label_column


def _undecoded(dataset, column: str):
    from datasets import Video

    # `datasets` decodes only with torchcodec; this package's own reader takes the bytes or the path.
    return dataset.cast_column(column, Video(decode=False)) if isinstance(dataset.features[column], Video) else dataset


def read_hub_dataset(
    dataset, name: str, video_column: str | None = None, label_column: str | None = None
) -> LabelledVideos:
    """Videos of one split of a `datasets.Dataset`, undecoded.

    Raises:
        ValueError: if the columns cannot be told, or the split is empty.
    """
    from datasets import ClassLabel

    video_column, label_column = _columns(dataset.features, video_column, label_column, name)
    dataset = _undecoded(dataset, video_column)
    if len(dataset) == 0:
        raise ValueError(f"{name} is empty.")
    feature = dataset.features[label_column]
    labels = list(dataset.select_columns([label_column])[:][label_column])
    if isinstance(feature, ClassLabel):
        class_names = list(feature.names)
        labels = [class_names[label] for label in labels]
    else:
        labels = [str(label) for label in labels]
        class_names = default_class_names(labels)
    names = [f"{name}[{number}]" for number in range(len(dataset))]
    return LabelledVideos(_VideoColumn(dataset, video_column), names, labels, class_names)


class StreamedVideos(IterableDataset):
    """Training clips from a streamed data set (`datasets.IterableDataset`), pass after pass without an end.

    Shuffled in a buffer and shared among processes and workers as `datasets` does it; broken videos are left out. A
    resumed run draws other clips: a stream has no places to go back to.
    """

    clips: "ClipReader"  # set once the model, and so the processor, is known

    def __init__(self, dataset, name: str, video_column, label_column, seed: int, buffer_size: int):
        from datasets import ClassLabel

        self.video_column, self.label_column = _columns(dataset.features, video_column, label_column, name)
        feature = dataset.features[self.label_column]
        if not isinstance(feature, ClassLabel):
            raise ValueError(
                f"{name}: a streamed data set must say its classes beforehand, {self.label_column!r} is {feature} and no "
                "ClassLabel. Leave --streaming away."
            )
        self.class_names = list(feature.names)
        self.dataset = _undecoded(dataset, self.video_column).shuffle(seed=seed, buffer_size=buffer_size)
        self.name, self.seed = name, seed

    @property
    def num_shards(self) -> int:
        """Files that workers can share; more workers than that would have nothing to read."""
        return self.dataset.num_shards

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        number = 0
        for epoch in iter(int, 1):  # without an end
            self.dataset.set_epoch(epoch)
            broken, given = [], 0
            for row in self.dataset:
                seed = clip_seed(self.seed, 0 if worker is None else worker.id + 1, number)
                number += 1
                name = f"{self.name}[stream, {number}]"
                try:
                    pixel_values = self.clips.training_clip(
                        _path_or_bytes(row[self.video_column]), int(row[self.label_column]), seed
                    )
                except (ValueError, OSError) as error:
                    broken.append((name, first_line(error)))
                    continue
                given += 1
                yield _item(pixel_values, int(row[self.label_column]), -1, broken)
                broken = []
            if given == 0:
                yield _item(None, IGNORED_LABEL, -1, broken or [(self.name, "the stream gave no video")])


# ------------------------------------------------------------------------------------------------------------- clips


def clip_seed(*parts: int) -> int:
    """One well-mixed number from seed, epoch, place, ...: the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


class ClipReader:
    """From a video (path, bytes, or its decoded frames) to what a model reads.

    Args:
        processor: decides frames, size and normalisation.
        augmentation: a `ClipAugmentation`; None shows training the same crop as a test.
        views: `num_clips`, `num_crops`, `size`, ... for the test; see `protocols.py`.
    """

    def __init__(self, processor: TPSVideoProcessor, augmentation=None, views: dict | None = None):
        if processor.fps is not None:
            raise ValueError("The processor samples by fps, which gives clips of different lengths: set num_frames.")
        self.processor, self.augmentation, self.views = processor, augmentation, views or {}
        self.sampling = {name: getattr(processor, name) for name in SAMPLING_SETTINGS} | {"num_clips": 1}

    def test_views(self, video) -> torch.Tensor:
        """(views, frames, 3, height, width)."""
        pixel_values = self.processor(video, return_tensors="pt", **self.views).pixel_values[0]
        return pixel_values if pixel_values.ndim == 5 else pixel_values[None]

    def training_clip(self, video, label: int, seed: int) -> torch.Tensor:
        """(frames, 3, height, width) at random places of time and, with an augmentation, of the frame."""
        generator = torch.Generator().manual_seed(seed)

        def indices(total: int) -> np.ndarray:
            return sample_frame_indices(
                total, num_frames=self.processor.num_frames, training=True, generator=generator, **self.sampling
            )[0]

        if isinstance(video, torch.Tensor):
            frames = video[torch.from_numpy(indices(len(video)))]
        else:
            frames, _ = read_video(video, lambda metadata: indices(metadata.total_num_frames))
        whole = {"do_sample_frames": False, "num_clips": 1, "num_crops": 1, "return_tensors": "pt"}
        if self.augmentation is None:
            return self.processor(frames, **whole).pixel_values[0]
        frames = self.augmentation.change_frames(frames, label, generator)
        cropped = self.augmentation.crops
        pixel_values = self.processor(
            frames,
            **whole,
            do_resize=self.processor.do_resize and not cropped,
            do_center_crop=self.processor.do_center_crop and not cropped,
        ).pixel_values[0]
        return self.augmentation.erase(pixel_values, generator)


def _item(pixel_values: torch.Tensor | None, label: int, index: int, broken: list[tuple[str, str]]) -> dict:
    return {"pixel_values": pixel_values, "labels": label, "index": index, "broken": broken}


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class VideoDataset(Dataset):
    """Clips by number.

    `dataset[(index, seed)]` is a training clip (see `TrainingBatches`), where a broken video is replaced by the next one
    that can be read. `dataset[index]` is one too with `training=True`, from torch's random state; without, all views of
    the test, and a broken video has the label `IGNORED_LABEL` and black frames.

    Each item has `pixel_values`, `labels`, `index`, and `broken`, pairs (name, reason) of what could not be read.

    Args:
        videos: what `read_class_folders` and its like return.
        class_names: the model's classes, in their order.
        clips: from a video to pixels.
        training: what a plain index means.
        frames: a `FrameCache` of the same videos.
    """

    def __init__(self, videos: LabelledVideos, class_names, clips: ClipReader, training: bool = False, frames=None):
        self.videos, self.clips, self.training = videos, clips, training
        self.labels = videos.label_ids(class_names)
        self.sources = videos.sources if frames is None else frames
        self.blank: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key) -> dict:
        if isinstance(key, tuple):
            return self._training_item(*key)
        if self.training:
            return self._training_item(key, int(torch.randint(2**32, ())))
        try:
            pixel_values = self.clips.test_views(self.sources[key])
            return _item(pixel_values, self.labels[key], key, [])
        except (ValueError, OSError) as error:
            broken = [(self.videos.names[key], first_line(error))]
            return _item(self._blank_views(), IGNORED_LABEL, key, broken)

    def _training_item(self, index: int, seed: int) -> dict:
        broken: list[tuple[str, str]] = []
        for other in range(min(len(self), MAX_BROKEN_IN_A_ROW)):
            number = (index + other) % len(self)
            try:
                pixel_values = self.clips.training_clip(self.sources[number], self.labels[number], seed)
                return _item(pixel_values, self.labels[number], number, broken)
            except (ValueError, OSError) as error:
                broken.append((self.videos.names[number], first_line(error)))
        return _item(None, IGNORED_LABEL, index, broken)

    def _blank_views(self) -> torch.Tensor:
        if self.blank is None:
            # As many pixels as any crop needs, so that the processor itself gives the shape of a batch.
            processor = self.clips.processor
            side = max((self.clips.views.get("crop_size") or dict(processor.crop_size)).values())
            self.blank = self.clips.test_views(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        return self.blank


def collate(items: list[dict]) -> dict:
    """A batch of items; `pixel_values` is None where no video could be found for one of them."""
    clips = [item["pixel_values"] for item in items]
    return {
        "pixel_values": None if any(clip is None for clip in clips) else torch.stack(clips),
        "labels": torch.tensor([item["labels"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "broken": [pair for item in items for pair in item["broken"]],
    }


class TrainingBatches(Sampler):
    """The micro-batches of one process from any step of a run to its end, as lists of (index, seed).

    Every epoch is one permutation. It is cut into optimizer steps of `batch_size * accumulation * world_size` clips, and
    each step into parts for the micro-batches and processes, in this order: two processes together see what one sees
    with twice the batch size or accumulation. What is left over at the end of an epoch is dropped; a data set smaller
    than one step is repeated to fill it.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        batch_size: int,
        seed: int,
        num_steps: int,
        first_step: int = 0,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        if num_videos < 1 or batch_size < 1:
            raise ValueError(f"There must be videos ({num_videos}) and a batch size of at least 1 ({batch_size}).")
        self.num_videos, self.batch_size, self.seed = num_videos, batch_size, seed
        self.first_step, self.num_steps = first_step, num_steps
        self.accumulation, self.rank, self.world_size = accumulation, rank, world_size

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.num_videos // (self.batch_size * self.accumulation * self.world_size))

    def __len__(self) -> int:
        return (self.num_steps - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        clips_per_step = self.batch_size * self.accumulation * self.world_size
        order: list[int] = []
        ordered_epoch = -1
        for step in range(self.first_step, self.num_steps):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = self._order(epoch, clips_per_step), epoch
            for part in range(self.accumulation):
                start = step_in_epoch * clips_per_step + (part * self.world_size + self.rank) * self.batch_size
                yield [
                    (order[place], clip_seed(self.seed, epoch, place))
                    for place in range(start, start + self.batch_size)
                ]

    def _order(self, epoch: int, at_least: int) -> list[int]:
        generator = torch.Generator().manual_seed(clip_seed(self.seed, epoch))
        order: list[int] = []
        while len(order) < max(self.num_videos, at_least):
            order += torch.randperm(self.num_videos, generator=generator).tolist()
        return order


class BrokenVideos:
    """Counts and names what could not be read.

    Args:
        policy: "skip" logs each video once and goes on, "error" stops at the first one.
    """

    POLICIES = ("skip", "error")

    def __init__(self, policy: str):
        if policy not in self.POLICIES:
            raise ValueError(f"on_broken_video must be one of {self.POLICIES}, got {policy!r}.")
        self.policy = policy
        self.reasons: dict[str, str] = {}

    def check(self, batch: dict) -> None:
        """Note the broken videos of a batch.

        Raises:
            ValueError: by policy, or if no readable video was found in their place.
        """
        for name, reason in batch["broken"]:
            if name in self.reasons:
                continue
            self.reasons[name] = reason
            if self.policy == "error":
                raise ValueError(f"Broken video {name}: {reason} (--on_broken_video skip goes on without it.)")
            logger.warning("broken video %s: %s", name, reason)
        if batch["pixel_values"] is None:
            raise ValueError(
                f"None of {len(batch['broken'])} videos in a row can be read; the first: {batch['broken'][0][0]}: "
                f"{batch['broken'][0][1]}"
            )


def check_files(videos: LabelledVideos, policy: str) -> None:
    """Look once whether the listed files are there, so that a wrong folder shows at the start and not after hours.

    Raises:
        ValueError: if one is missing and the policy is "error", or if all are.
    """
    if isinstance(videos.sources, _VideoColumn):
        return
    missing = [path for path in videos.sources if isinstance(path, str) and not os.path.isfile(path)]
    if not missing:
        return
    message = f"{len(missing)} of {len(videos)} listed videos are missing: {_some(missing)}."
    if policy == "error" or len(missing) == len(videos):
        raise ValueError(f"{message} --video_dir says where relative paths begin.")
    logger.warning("%s They are skipped.", message)


def split_off_validation(videos: LabelledVideos, fraction: float, seed: int) -> tuple[LabelledVideos, LabelledVideos]:
    """A random part of the videos for validation.

    Raises:
        ValueError: if one of the two parts would be empty.
    """
    count = round(len(videos) * fraction)
    if not 0 < count < len(videos):
        raise ValueError(
            f"--train_val_split {fraction} of {len(videos)} videos leaves {len(videos) - count} for training and {count} "
            "for validation: both need at least one. Give validation videos of their own, or another fraction."
        )
    order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(seed)).tolist()
    return videos.select(sorted(order[count:])), videos.select(sorted(order[:count]))


def first_videos(videos: LabelledVideos, limit: int | None, seed: int) -> LabelledVideos:
    """At most `limit` of the videos, chosen by chance so that all classes have theirs."""
    if limit is None or limit >= len(videos):
        return videos
    if limit < 1:
        raise ValueError(f"A limit of samples must be at least 1, got {limit}.")
    order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(seed)).tolist()
    return videos.select(sorted(order[:limit]))


NO_FLIP_PRESETS = {
    # Exactly Something-Something-v2's six classes that a mirror turns into another one (86, 87, 93, 94, 166, 167).
    "left_right": re.compile(r"\b(?:from|to|camera)\s+(?:the\s+)?(?:left|right)\b", re.IGNORECASE),
}


def never_flipped(class_names: Sequence[str], wanted: Sequence[str]) -> frozenset[int]:
    """Ids of the classes that must not be mirrored.

    Args:
        class_names: all classes.
        wanted: class names, ids, or "left_right" for all whose name says a direction ("... from left to right").

    Raises:
        ValueError: for what is neither.
    """
    ids: set[int] = set()
    for entry in wanted:
        if entry in NO_FLIP_PRESETS:
            ids |= {number for number, name in enumerate(class_names) if NO_FLIP_PRESETS[entry].search(name)}
        elif entry in class_names:
            ids.add(list(class_names).index(entry))
        elif entry.isdecimal() and int(entry) < len(class_names):
            ids.add(int(entry))
        else:
            raise ValueError(
                f"--no_flip_classes {entry!r} is no class name, no id below {len(class_names)}, and not left_right."
            )
    return frozenset(ids)
