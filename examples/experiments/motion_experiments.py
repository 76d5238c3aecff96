"""What evidence.py and ablations.py share: small models, trained and tested on the motion benchmark.

Each is a row of a table. `finetune.py` trains it; it is tested on clips as they are, with the frames shuffled, and
played backwards.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForVideoClassification, PreTrainedConfig, PreTrainedModel

# not the one at the top level of transformers, which is a placeholder wherever torchvision is missing
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, wherever this file is run from

from examples.experiments.make_motion_dataset import DESCRIPTION, MotionSettings, opposite_class, write_dataset
from hf_tps import TPSVideoProcessor  # which also registers the models with the Auto classes
from hf_tps.training.results import write_json
from hf_tps.video_reading import read_video

EXAMPLES = Path(__file__).resolve().parents[1]
EVALUATION_BATCH = 100
# glibc gives the memory of every activation back to the system and asks for it again in the next step: half of the time
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(10**11), "MALLOC_TOP_PAD_": str(5 * 10**8)}


class TrainingError(RuntimeError):
    """finetune.py broke off."""


# TPS for frames of 32 x 32 pixels: two stages of two blocks on patches of 4 pixels
SMALL_TPS = {
    "image_size": 32,
    "patch_size": 4,
    "tubelet_size": 1,
    "embed_dim": 48,
    "depths": (2, 2),
    "num_heads": (4, 4),
    "window_size": 4,
    "shift_div": 4,
    "classifier_dropout": 0.0,
    "drop_path_rate": 0.0,
    "initializer_range": 0.1,  # for narrow layers: 0.02 suits a width of 768
}


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained: AdamW with a cosine schedule, in `finetune.py`'s words."""

    epochs: int
    learning_rate: float
    batch_size: int = 32
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the training
    # pixels are divided by it after the mean was taken off: a large one makes the colours small beside the positions
    image_std: float = 1.0


@dataclass(frozen=True)
class Row:
    """A line of a table: a model and how it is trained."""

    name: str  # short, for --only and folders
    title: str
    model_type: str
    fields: dict  # of the config
    training: TrainingSettings
    # the fields of the same network with time switched off; None: there is no such twin
    off: dict | None = None
    # What it begins with. None: random weights. "image": the image model; `fields` are then those that it does not
    # tell. "vivit": a ViViT made of it, as it is
    start: str | None = None
    image_size: int = 32


@dataclass
class Benchmark:
    """The videos of a run, and the validation clips in memory."""

    folder: Path
    frames: list[torch.Tensor] = field(default_factory=list)  # uint8 (num_frames, 3, height, width) each
    labels: list[str] = field(default_factory=list)

    @property
    def description(self) -> dict:
        return json.loads((self.folder / DESCRIPTION).read_text())

    @property
    def num_frames(self) -> int:
        return self.description["settings"]["num_frames"]

    def load_validation(self) -> None:
        if self.frames:
            return
        paths = sorted((self.folder / "validation").rglob("*.mp4"))
        for path in tqdm(paths, desc="reading validation clips", unit="clip", disable=None):
            self.frames.append(read_video(path)[0])
            self.labels.append(path.parent.name)


def prepare_benchmark(folder: Path, settings: MotionSettings, clips: dict[str, int], seed: int) -> Benchmark:
    """The benchmark in `folder`, written if it is not there yet.

    Raises:
        ValueError: if what is there was made with other settings.
    """
    if not folder.is_dir():
        write_dataset(folder, settings, clips, seed, num_workers=os.cpu_count() or 1)
    benchmark = Benchmark(folder)
    found = benchmark.description
    wanted = json.loads(json.dumps({"seed": seed, "clips": clips, "settings": vars(settings)}))
    if {name: found[name] for name in wanted} != wanted:
        raise ValueError(f"{folder} holds a benchmark with other settings: remove it, or give another --output_dir.")
    return benchmark


# --- training --------------------------------------------------------------------------------------------------------


def training_flags(
    settings: TrainingSettings, videos: Path | str, cache: Path | str, size: int, train_clips: int
) -> list[str]:
    """The flags of `finetune.py` for training on a motion benchmark.

    Args:
        videos: its folder.
        cache: where decoded frames are kept.
        size: side of the frames in pixels.
        train_clips: videos in its training split.
    """
    steps = settings.epochs * (train_clips // settings.batch_size)
    flags = (
        *("--train_dir", f"{videos}/train", "--validation_dir", f"{videos}/validation", "--cache_frames", cache),
        *("--no_augmentation", "--checkpointing_steps", "no", "--crop_size", size, "--short_side", size),
        *("--image_mean", *[0.5] * 3, "--image_std", *[settings.image_std] * 3),
        # all frames as they are; "uniform" draws one from each segment, so some twice and some never
        *("--sampling", "dense", "--frame_interval", 1),
        *("--num_train_epochs", settings.epochs, "--per_device_train_batch_size", settings.batch_size),
        *("--learning_rate", settings.learning_rate, "--weight_decay", settings.weight_decay),
        *("--adam_beta2", 0.98, "--max_grad_norm", 1, "--num_warmup_steps", round(settings.warmup * steps)),
    )
    return [str(flag) for flag in flags]


def fine_tune(
    row: Row, time_off: bool, benchmark: Benchmark, starts: dict[str, Path], output: Path, seed: int, threads: int
) -> float:
    """Train with `accelerate launch examples/finetune.py`, as a user does.

    The model lies in `output` afterwards, with what the script said in training.log.

    Returns:
        Seconds.

    Raises:
        TrainingError: with the end of the log, if the script fails.
    """
    begun = time.perf_counter()
    size = row.image_size
    fields = {"num_frames": benchmark.num_frames, **row.fields, **((row.off or {}) if time_off else {})}
    train_clips = benchmark.description["clips"]["train"]
    with tempfile.TemporaryDirectory() as scratch:
        if row.start == "vivit":
            start = ("--model_name_or_path", starts["vivit"])
        elif row.start == "image":
            target = {"video_shift": "shift"}.get(row.model_type, row.model_type)
            overrides = ",".join(f"{name}={json.dumps(value)}" for name, value in fields.items())
            start = ("--model_name_or_path", starts["image"], "--from_image", target, "--config_overrides", overrides)
        else:
            AutoConfig.for_model(row.model_type, **fields).save_pretrained(scratch)
            start = ("--config_name", scratch)
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"),
            *("--mixed_precision", "bf16" if cpu_multiplies_bfloat16() else "no"),
            *(EXAMPLES / "finetune.py", *start, "--output_dir", output, "--overwrite_output_dir"),
            *("--per_device_eval_batch_size", EVALUATION_BATCH, "--attn_implementation", "eager", "--seed", seed),
            *training_flags(row.training, benchmark.folder, benchmark.folder.parent / "frames", size, train_clips),
        ]
        environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(threads)}
        output.mkdir(parents=True, exist_ok=True)
        with open(output / "training.log", "w") as log:
            done = subprocess.run([str(part) for part in command], env=environment, stdout=log, stderr=log)
        if done.returncode:
            last_lines = "".join((output / "training.log").read_text().splitlines(keepends=True)[-20:])
            raise TrainingError(f"finetune.py broke off; the end of {output / 'training.log'}:\n{last_lines}")
    return time.perf_counter() - begun


def cpu_multiplies_bfloat16() -> bool:
    """Whether half precision makes a CPU faster: matrix units (AMX); elsewhere it is emulated and slower."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


# --- test ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    processor: TPSVideoProcessor,
    benchmark: Benchmark,
    move: Callable[[torch.Tensor], torch.Tensor],
) -> list[str]:
    """The class that the model sees in each validation clip after `move` changed the order of its frames.

    In the precision of the training: the running statistics of batch norms belong to it (a LAPS trained in bfloat16
    lost 6 points in float32).
    """
    found = []
    for start in tqdm(range(0, len(benchmark.frames), EVALUATION_BATCH), desc="testing", disable=None, leave=False):
        clips = [move(clip) for clip in benchmark.frames[start : start + EVALUATION_BATCH]]
        pixel_values = processor(clips, return_tensors="pt").pixel_values
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bfloat16()):
            logits = model(pixel_values=pixel_values).logits
        found += [model.config.id2label[index] for index in logits.argmax(-1).tolist()]
    return found


def share(found: Sequence[str], expected: Sequence[str]) -> float:
    """Per cent of equal entries."""
    return 100 * sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)


def shuffled(seed: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that puts the frames of a clip in random order."""
    generator = torch.Generator().manual_seed(seed)
    return lambda clip: clip[torch.randperm(len(clip), generator=generator)]


def test_on_motion(folder: Path, benchmark: Benchmark) -> dict[str, float]:
    """Top-1 on clips as they are and shuffled, and how often a clip backwards is the opposite class; per cent."""
    model = AutoModelForVideoClassification.from_pretrained(folder).eval()
    return motion_figures(model, AutoVideoProcessor.from_pretrained(folder), benchmark)


def motion_figures(
    model: PreTrainedModel,
    processor: TPSVideoProcessor,
    benchmark: Benchmark,
    wanted: Sequence[str] = ("top1", "shuffled", "reversed"),
) -> dict[str, float]:
    """As `test_on_motion`, of a model that is there."""
    benchmark.load_validation()
    labels = benchmark.labels
    tests = {
        "top1": (lambda clip: clip, labels),
        "shuffled": (shuffled(), labels),
        "reversed": (lambda clip: clip.flip(0), [opposite_class(label) for label in labels]),
    }
    return {name: share(answers(model, processor, benchmark, tests[name][0]), tests[name][1]) for name in wanted}


@torch.no_grad()
def check_blind(model: PreTrainedModel, image_size: int) -> None:
    """Make sure that the order of the frames means nothing to a network with time switched off.

    Raises:
        RuntimeError: if the logits change when the frames change places.
    """
    clip = torch.randn(
        2, model.config.num_frames, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)
    )
    straight = model(pixel_values=clip).logits
    for order in (range(model.config.num_frames - 1, -1, -1), torch.randperm(model.config.num_frames).tolist()):
        difference = (model(pixel_values=clip[:, list(order)]).logits - straight).abs().max().item()
        if difference > 1e-4 * max(1, straight.abs().max().item()):
            raise RuntimeError(
                f"{type(model).__name__} with time switched off sees the order of the frames: its logits change by "
                f"{difference:.2g}."
            )


def count_macs(config: PreTrainedConfig, image_size: int) -> int:
    """Multiplications of one clip."""
    with torch.device("meta"):
        model = AutoModelForVideoClassification.from_config(config).eval()
        with FlopCounterMode(display=False) as counter:
            model(pixel_values=torch.empty(1, config.num_frames, 3, image_size, image_size))
    return counter.get_total_flops() // 2


# --- runs ------------------------------------------------------------------------------------------------------------


def figures_of(row: Row, time_off: bool, seed: int, benchmark: Benchmark, folder: Path) -> dict[str, object]:
    """What the tables tell of a trained model."""
    model = AutoModelForVideoClassification.from_pretrained(folder).eval()
    if time_off:
        check_blind(model, row.image_size)
    return {
        "row": row.name,
        "time_off": time_off,
        "seed": seed,
        "parameters": model.num_parameters(),
        "macs": count_macs(model.config, row.image_size),
        "training_clips": row.training.epochs * benchmark.description["clips"]["train"],
        **test_on_motion(folder, benchmark),
    }


@contextmanager
def threads_of_torch(threads: int) -> Iterator[None]:
    """Fewer threads beside trainings: on busy cores they wait for each other, which takes a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_results(path: Path) -> list[dict]:
    return json.loads(path.read_text()) if path.is_file() else []


def model_folder(output_dir: Path, row: str, seed: int, time_off: bool = False) -> Path:
    return output_dir / "models" / f"{row}{'-off' if time_off else ''}-seed{seed}"


def run_rows(
    jobs: Sequence[tuple[Row, bool]],
    benchmark: Benchmark,
    output_dir: Path,
    seeds: Sequence[int],
    at_once: int = 1,
    starts: dict[str, Path] | None = None,
) -> list[dict]:
    """Train and test what results.json does not hold yet; a run that was broken off goes on where it was.

    Args:
        jobs: rows, with time on or off.
        starts: folders of the models that rows begin with, see `Row.start`.
        at_once: models that train at the same time, sharing the cores.
    """
    path = output_dir / "results.json"
    results = load_results(path)
    done = {(figures["row"], figures["time_off"], figures["seed"]) for figures in results}
    todo = [(row, off, seed) for seed in seeds for row, off in jobs if (row.name, off, seed) not in done]
    threads = max(1, (os.cpu_count() or 1) // at_once)
    with ThreadPoolExecutor(at_once) as pool, threads_of_torch(threads):
        running = {}
        for row, time_off, seed in todo:
            folder = model_folder(output_dir, row.name, seed, time_off)
            training = pool.submit(fine_tune, row, time_off, benchmark, starts or {}, folder, seed, threads)
            running[training] = (row, time_off, seed, folder)
        progress = tqdm(as_completed(running), total=len(running), desc="models", unit="model", disable=None)
        try:
            for training in progress:
                seconds = training.result()
                row, time_off, seed, folder = running[training]
                figures = figures_of(row, time_off, seed, benchmark, folder)
                results.append({**figures, "training_seconds": seconds})
                write_json(path, results)
                progress.write(json.dumps({n: round(v, 1) if isinstance(v, float) else v for n, v in figures.items()}))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def add_arguments(parser: argparse.ArgumentParser, rows: Sequence[Row], output_dir: str) -> None:
    parser.add_argument("--output_dir", type=Path, default=Path(output_dir), help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in rows], help="rows to run (default: all)")
    parser.add_argument(
        "--at_once", type=int, default=os.cpu_count() or 1, help="models that train at once (default: cores)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the training (default 0)")
    parser.add_argument("--train_clips", type=int, default=19200)
    parser.add_argument("--validation_clips", type=int, default=2400)
    parser.add_argument("--data_seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="remove older results in the folder first")


def chosen(rows: Sequence[Row], only: Sequence[str] | None) -> list[Row]:
    return [row for row in rows if only is None or row.name in only]


def open_benchmark(arguments: argparse.Namespace, settings: MotionSettings) -> Benchmark:
    """The output folder with its videos; older models and results go if --fresh asks for it."""
    if arguments.at_once < 1:
        raise ValueError(f"--at_once must be at least 1, got {arguments.at_once}.")
    folder = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.fresh:
        (folder / "results.json").unlink(missing_ok=True)
        shutil.rmtree(folder / "models", ignore_errors=True)
    clips = {"train": arguments.train_clips, "validation": arguments.validation_clips}
    return prepare_benchmark(folder / "videos", settings, clips, arguments.data_seed)
