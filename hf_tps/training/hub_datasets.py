"""Labelled videos from a data set of `datasets`: read whole, or streamed."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

from .class_names import default_class_names
from .data import IGNORED_LABEL, MAX_BROKEN_IN_A_ROW, ClipReader, clip_item, clip_seed
from .text import first_line
from .video_lists import LABEL_COLUMNS, LabelledVideos

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    import datasets


class _VideoColumn(Sequence[str | bytes]):
    """The videos of a data set, each as path or bytes, read when asked for."""

    def __init__(self, dataset: "datasets.Dataset", column: str) -> None:
        self.dataset, self.column = dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return _path_or_bytes(self.dataset[index][self.column])


def _path_or_bytes(value: Any) -> str | bytes:
    if isinstance(value, dict):
        return value["path"] if value.get("bytes") is None else value["bytes"]
    return value


def _columns(
    features: "datasets.Features", video_column: str | None, label_column: str | None, name: str
) -> tuple[str, str]:
    """The columns of videos and labels: those named, else found by their types, else by their usual names."""
    from datasets import ClassLabel, Video

    columns = list(features)
    video_column = video_column or next((c for c in columns if isinstance(features[c], Video)), None)
    video_column = video_column or next((c for c in ("video", "path", "file_name") if c in columns), None)
    label_column = label_column or next((c for c in columns if isinstance(features[c], ClassLabel)), None)
    label_column = label_column or next((c for c in LABEL_COLUMNS if c in columns), None)
    return (
        _existing(video_column, "video_column", columns, name),
        _existing(label_column, "label_column", columns, name),
    )


def _existing(wanted: str | None, setting: str, columns: list[str], name: str) -> str:
    if wanted is None or wanted not in columns:
        raise ValueError(f"{name} has the columns {columns}: {setting} must name one of them, not {wanted!r}.")
    return wanted


def _undecoded(
    dataset: "datasets.Dataset | datasets.IterableDataset", column: str
) -> "datasets.Dataset | datasets.IterableDataset":
    from datasets import Video

    # `datasets` decodes only with torchcodec; this package's own reader takes the bytes or the path.
    return dataset.cast_column(column, Video(decode=False)) if isinstance(dataset.features[column], Video) else dataset


def read_hub_dataset(
    dataset: "datasets.Dataset", name: str, video_column: str | None = None, label_column: str | None = None
) -> LabelledVideos:
    """Videos of one split of a data set, undecoded.

    Args:
        name: what messages call the data set.
        video_column, label_column: names of columns; None: found by their types.

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
    """Training clips from a streamed data set, pass after pass without an end.

    Shuffled in a buffer and shared among processes and workers as `datasets` does it; broken videos are left out. A
    resumed run draws other clips: a stream has no places to go back to.

    Args:
        dataset, name, video_column, label_column: as for `read_hub_dataset`.
        buffer_size: videos in the buffer.

    Raises:
        ValueError: if the columns cannot be told, or the data set does not say its classes beforehand.
    """

    clips: ClipReader  # set once the model, and so the processor, is known

    def __init__(
        self,
        dataset: "datasets.IterableDataset",
        name: str,
        video_column: str | None,
        label_column: str | None,
        seed: int,
        buffer_size: int,
    ) -> None:
        from datasets import ClassLabel

        self.video_column, self.label_column = _columns(dataset.features, video_column, label_column, name)
        feature = dataset.features[self.label_column]
        if not isinstance(feature, ClassLabel):
            raise ValueError(
                f"{name}: a streamed data set must say its classes beforehand, {self.label_column!r} is {feature} and "
                "no ClassLabel. Read it whole, without streaming."
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
                except Exception as error:  # see `data`: whatever one video makes a library raise
                    broken.append((name, first_line(error)))
                    if len(broken) == MAX_BROKEN_IN_A_ROW:
                        yield clip_item(None, IGNORED_LABEL, -1, broken)
                        broken = []
                    continue
                given += 1
                yield clip_item(pixel_values, int(row[self.label_column]), -1, broken)
                broken = []
            if given == 0:
                yield clip_item(None, IGNORED_LABEL, -1, broken or [(self.name, "the stream gave no video")])
