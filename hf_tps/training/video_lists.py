"""Lists of labelled videos: from folders of classes and list files, divided into parts, checked before a run."""

import csv
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..text_files import read_json, read_text
from .class_names import default_class_names, match_labels, read_class_names, without_brackets
from .text import some

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".flv", ".ogv", ".ogg", ".wmv", ".asf", ".gif"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".3gp"),
)
PATH_COLUMNS = ("path", "video", "video_path", "file_name", "filename", "file", "vid_name", "id")
LABEL_COLUMNS = ("label", "template", "class", "label_name", "class_name", "category")


@dataclass
class LabelledVideos:
    """Videos with the names of their classes.

    Attributes:
        sources: for each video a path or the bytes of the file; a list, or a sequence that reads them one by one.
        names: for each video what messages call it.
        labels: for each video the name of its class; a number as text where the list has numbers only.
        class_names: all classes in the order of their ids.
    """

    sources: Sequence[str | bytes]
    names: list[str]
    labels: list[str]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: Sequence[int]) -> "LabelledVideos":
        """The videos with these numbers, the classes unchanged."""
        return LabelledVideos(
            [self.sources[i] for i in indices] if isinstance(self.sources, list) else _Selected(self.sources, indices),
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
                f"{len(unknown)} labels are not among the {len(class_names)} classes: {some(unknown)}. The classes "
                f"are {some(class_names)}."
            )
        return [ids[label] for label in self.labels]


class _Selected(Sequence[str | bytes]):
    """Some of the videos of a sequence that reads them one by one."""

    def __init__(self, items: Sequence[str | bytes], indices: Sequence[int]) -> None:
        self.items, self.indices = items, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.items[self.indices[index]]


def check_files(videos: LabelledVideos, policy: str) -> None:
    """Look once whether the listed files are there, so that a wrong folder shows at the start and not after hours.

    Args:
        policy: what a missing one means, "skip" or "error".

    Raises:
        ValueError: if one is missing and the policy is "error", or if all are.
    """
    if not isinstance(videos.sources, list):  # the rows of a data set: all of it would be read
        return
    missing = [path for path in videos.sources if isinstance(path, str) and not os.path.isfile(path)]
    if not missing:
        return
    message = f"{len(missing)} of {len(videos)} listed videos are missing: {some(missing)}."
    if policy == "error" or len(missing) == len(videos):
        raise ValueError(f"{message} Relative paths begin at the list's folder, or at video_dir where it is given.")
    logger.warning("%s They are skipped.", message)


def split_off_validation(videos: LabelledVideos, fraction: float, seed: int) -> tuple[LabelledVideos, LabelledVideos]:
    """A random part of the videos for validation.

    Raises:
        ValueError: if one of the two parts would be empty.
    """
    count = round(len(videos) * fraction)
    if not 0 < count < len(videos):
        raise ValueError(
            f"A share of {fraction} of {len(videos)} videos leaves {len(videos) - count} for training and {count} for "
            "validation: both need at least one. Give validation videos of their own, or another share."
        )
    order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(seed)).tolist()
    return videos.select(sorted(order[count:])), videos.select(sorted(order[:count]))


def first_videos(videos: LabelledVideos, limit: int | None, seed: int) -> LabelledVideos:
    """At most `limit` of the videos, chosen by chance so that all classes have theirs; None: all of them.

    Raises:
        ValueError: for a limit below 1.
    """
    if limit is None or limit >= len(videos):
        return videos
    if limit < 1:
        raise ValueError(f"A limit of samples must be at least 1, got {limit}.")
    order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(seed)).tolist()
    return videos.select(sorted(order[:limit]))


# --- reading ---------------------------------------------------------------------------------------------------------


def video_files(folder: Path) -> list[Path]:
    """The files of a folder that have the name of a video, at any depth."""
    return [path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES]


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
        found = sorted(video_files(class_folder))
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
        class_names: a file with the classes, see `class_names.read_class_names`. Without it the classes are the sorted
            names in the list, or for numbers 0 to the largest.

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
        labels = match_labels(labels, known, path)
    else:
        known = default_class_names(labels)
    return LabelledVideos(_with_suffix(names, root), names, labels, known)


def _json_rows(path: Path) -> list[tuple[str, str]]:
    records = read_json(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{path} must be a JSON list of objects, one for each video.")
    rows = []
    for number, record in enumerate(records):
        name = next((record[column] for column in PATH_COLUMNS if column in record), None)
        # Something-Something has both: `label` is free text there, and `template` is the class.
        label = record.get("template", next((record[column] for column in LABEL_COLUMNS if column in record), None))
        if name is None or label is None:
            raise ValueError(
                f"{path}, record {number}: needed are one of {PATH_COLUMNS} and one of {LABEL_COLUMNS}, it has "
                f"{sorted(record)}."
            )
        rows.append((str(name), without_brackets(str(label))))
    return rows


def _text_rows(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        return []
    # A header says what parts the columns. Else the last word decides: in `a, b.mp4 3` the label is parted by a blank,
    # in `a b.mp4,7` by the comma.
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
    names = [column for column in PATH_COLUMNS if column in header]
    labels = [column for column in LABEL_COLUMNS if column in header]
    if names and labels:
        name_column, label_column = header.index(names[0]), header.index(labels[0])
        rows = rows[1:]
    width = len(header) if names and labels else 2
    for number, row in enumerate(rows, start=len(lines) - len(rows) + 1):
        if len(row) != width or not all(row[column].strip() for column in (name_column, label_column)):
            raise ValueError(
                f"{path}, line {number}: {lines[number - 1][:200]!r} is not `path label` (parted by a blank, a tab or "
                "a comma). Lists with more columns need a header line that names `path` and `label`."
            )
    return [(row[name_column].strip(), row[label_column].strip()) for row in rows]


def _column_names(row: list[str]) -> list[str]:
    return [column.strip().strip('"').lower() for column in row]


def _is_header(row: list[str]) -> bool:
    columns = set(_column_names(row))
    return "youtube_id" in columns or bool(columns & set(PATH_COLUMNS) and columns & set(LABEL_COLUMNS))


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
