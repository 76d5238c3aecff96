"""Measure models against each other and against the machine, in one process and interleaved:

    python examples/benchmarks/benchmark.py --models tps-tiny swin-tiny --batch_size 1 4 --passes forward train

Each round times a matrix product and then every model once (A B A B ...). Figures are medians over the rounds; `ratio`
is the median of a model's time over that of its peer in the same round. All weights are random. The table goes to
standard output; results.json and cost.png (cost against size) to --output_dir.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    SwinConfig,
    SwinModel,
    TimesformerConfig,
    TimesformerModel,
    VideoMAEConfig,
    VideoMAEModel,
    ViTConfig,
    ViTModel,
    VivitConfig,
    VivitModel,
    VJEPA2Config,
    VJEPA2Model,
)

from hf_tps import (
    LAPSConfig,
    LAPSModel,
    TPSConfig,
    TPSModel,
    XViTConfig,
    XViTModel,
    add_temporal_shift,
    add_token_merging,
)
from hf_tps.training import pictures
from hf_tps.training.results import write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MATRIX_SIZE = 2048  # of the square matrix product that stands for what the machine can do
SWIN_SIZES = {"tiny": {}, "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}}

# What --smoke changes: every model with a few channels, for a trial of the command
SMALL_SWIN = {"image_size": 56, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)}
SMALL_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "patch_size": 16,
}
SMOKE = {
    SwinConfig: SMALL_SWIN,
    TPSConfig: SMALL_SWIN,
    XViTConfig: {**SMALL_VIT, "image_size": 32, "temporal_head_heads": 2, "temporal_head_size": 16},
    LAPSConfig: {"image_size": 32, "embed_dim": 48, "num_heads": 2, "stem_channels": 8},
    VJEPA2Config: {
        **SMALL_VIT,
        "crop_size": 32,
        "pred_hidden_size": 48,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
    },
    **dict.fromkeys((ViTConfig, VideoMAEConfig, TimesformerConfig, VivitConfig), {**SMALL_VIT, "image_size": 32}),
}


@dataclass
class Contender:
    """A model to measure."""

    build: Callable[[], nn.Module]
    clip_shape: tuple[int, ...]  # of one clip, without the batch
    frames_are_batch: bool = False  # an image model
    peer: str | None = None  # what its time is divided by
    arguments: dict = field(default_factory=dict)  # of the forward pass

    def input(self, batch_size: int, device: str, dtype: torch.dtype) -> torch.Tensor:
        clips = torch.randn(batch_size, *self.clip_shape, device=device, dtype=dtype)
        return clips.flatten(0, 1) if self.frames_are_batch else clips


def catalogue(smoke: bool = False) -> dict[str, Contender]:
    """Every model that --models can name."""

    def config(config_class: type, **fields: Any) -> PreTrainedConfig:
        return config_class(**{**fields, **(SMOKE[config_class] if smoke else {})})

    def video(model_class: type, settings: PreTrainedConfig, frames: int, **more: Any) -> Contender:
        size = settings.crop_size if model_class is VJEPA2Model else settings.image_size
        return Contender(functools.partial(model_class, settings), (frames, 3, size, size), **more)

    contenders = {}
    for size, fields in SWIN_SIZES.items():
        tps, swin = config(TPSConfig, num_frames=32, **fields), config(SwinConfig, image_size=224, **fields)
        contenders[f"tps-{size}"] = video(TPSModel, tps, 32, peer=f"swin-{size}")
        contenders[f"swin-{size}"] = video(SwinModel, swin, 16, frames_are_batch=True)

    xvit, vit, videomae = config(XViTConfig, num_frames=16), config(ViTConfig), config(VideoMAEConfig)
    vjepa2 = config(VJEPA2Config, frames_per_clip=16)
    plugged = Contender(
        lambda: add_temporal_shift(ViTModel(vit), num_frames=16),
        (16, 3, vit.image_size, vit.image_size),
        frames_are_batch=True,
        peer="vit-base-16",
    )
    merged = Contender(
        # the small model merges too late for the share that the default keeps
        lambda: add_token_merging(VideoMAEModel(videomae), keep_ratio=0.5 if smoke else None),
        (16, 3, videomae.image_size, videomae.image_size),
        peer="videomae-base",
    )
    return contenders | {
        "xvit-base": video(XViTModel, xvit, 16, peer="vit-base-16"),
        "vit-base-16": video(ViTModel, vit, 16, frames_are_batch=True),
        "vit-base-16-shift": plugged,
        "laps-vit-base": video(LAPSModel, config(LAPSConfig, backbone="vit"), 8, peer="vit-base-8"),
        "vit-base-8": video(ViTModel, vit, 8, frames_are_batch=True),
        "laps-visformer-small": video(LAPSModel, config(LAPSConfig), 8),
        "videomae-base": video(VideoMAEModel, videomae, 16),
        "sttm-videomae-base": merged,
        "timesformer-base": video(TimesformerModel, config(TimesformerConfig, num_frames=8), 8),
        "vivit-base": video(VivitModel, config(VivitConfig, num_frames=32), 32),
        "vjepa2-large": video(VJEPA2Model, vjepa2, 16, arguments={"skip_predictor": True}),
    }


def import_reference(name: str, peer: str) -> Contender:
    """`module:callable`, which returns a module and the shape of one clip as the module takes it, without the batch."""
    module_name, _, function = name.partition(":")
    if not function:
        raise ValueError(f"--reference takes MODULE:CALLABLE, got {name!r}.")
    try:
        make = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--reference {name}: {error}. Its folder must be on PYTHONPATH.") from error
    clip_shape = tuple(make()[1])
    return Contender(lambda: make()[0], clip_shape, peer=peer)


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensors that come to be inside it, at their highest: a count, the same at every run."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(
        self, function: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.add(tensor.untyped_storage())
        return outputs

    def add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        self.seen.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, storage.nbytes())

    def remove(self, nbytes: int) -> None:
        self.now -= nbytes


@dataclass(frozen=True)
class Setting:
    """What all models of one table block share."""

    batch_size: int
    dtype: str
    attention: str
    compiled: bool
    step: str  # "forward" or "train"


@dataclass
class Row:
    """A line of the table. Times in seconds, memory in bytes, rates in multiply-accumulates each second."""

    model: str
    peer: str | None
    setting: Setting
    seconds: float
    clips_per_second: float
    ratio: float | None
    peak_memory: int | None
    macs: int | None
    parameters: int
    matrix_rate: float
    efficiency: float | None
    first_call: float
    top1: None = None  # random weights have no accuracy; the column is there for whoever fills it


class Runner:
    """One model under one setting."""

    def __init__(self, name: str, contender: Contender, setting: Setting, arguments: argparse.Namespace) -> None:
        self.name, self.contender, self.setting, self.device = name, contender, setting, arguments.device
        torch.manual_seed(0)
        model = self.set_up(contender.build()).to(self.device, DTYPES[setting.dtype])
        self.model = model.train(setting.step == "train")
        self.clips = contender.input(setting.batch_size, self.device, DTYPES[setting.dtype])
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.call = torch.compile(model, mode=arguments.compile_mode) if setting.compiled else model
        self.first_call = self.seconds()

    def set_up(self, model: nn.Module) -> nn.Module:
        if isinstance(model, PreTrainedModel):
            model.set_attn_implementation(self.setting.attention)
        return model

    def run(self, model: Callable, clips: torch.Tensor, no_gradient: type = torch.inference_mode) -> None:
        with contextlib.nullcontext() if self.setting.step == "train" else no_gradient():
            outputs = model(clips, **self.contender.arguments)
            answer = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
            if self.setting.step == "train":
                answer.float().mean().backward()
        if self.setting.step == "train":
            self.model.zero_grad()

    def seconds(self) -> float:
        synchronise(self.device)
        start = time.perf_counter()
        self.run(self.call, self.clips)
        synchronise(self.device)
        return time.perf_counter() - start

    def peak_memory(self) -> int | None:
        """Bytes beyond weights and clip: on a GPU the most that was allocated, on a CPU those of an eager model."""
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run(self.call, self.clips)
            return torch.cuda.max_memory_allocated() - before
        if self.setting.compiled:
            return None
        # not inference_mode, which hides the tensors inside composite operators from the counter
        with PeakMemory() as counter:
            self.run(self.model, self.clips, torch.no_grad)
        return counter.peak

    def macs(self) -> int | None:
        """Multiply-accumulates of a forward pass: half of the flops, counted on the meta device."""
        with torch.device("meta"):
            model = self.set_up(self.contender.build()).eval()
            clips = self.contender.input(self.setting.batch_size, "meta", torch.float32)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(clips, **self.contender.arguments)
        return counter.get_total_flops() // 2


class OnnxRunner(Runner):
    """The same model, exported, in ONNX Runtime. Forward passes alone; it has no counters of its own."""

    def __init__(self, name: str, contender: Contender, setting: Setting, arguments: argparse.Namespace) -> None:
        import onnxruntime

        super().__init__(f"{name} (ONNX Runtime)", contender, setting, arguments)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            keywords = {"return_dict": False} if isinstance(self.model, PreTrainedModel) else {}
            keywords |= contender.arguments
            try:
                torch.onnx.export(self.model, (self.clips,), path, kwargs=keywords, dynamo=True, verbose=False)
            except Exception as error:  # whatever the exporter and its libraries raise
                raise ValueError(f"torch.onnx.export failed: {str(error).strip().splitlines()[0]}") from error
            providers = ["CPUExecutionProvider"] if self.device == "cpu" else ["CUDAExecutionProvider"]
            self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        self.array = {self.session.get_inputs()[0].name: self.clips.cpu().numpy()}
        self.first_call = self.seconds()

    def seconds(self) -> float:
        if not hasattr(self, "session"):
            return 0.0
        start = time.perf_counter()
        self.session.run(None, self.array)
        return time.perf_counter() - start

    def peak_memory(self) -> None:
        return None


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def matrix_product(device: str, dtype: torch.dtype) -> Callable[[], float]:
    """A function that times one product of square matrices and returns multiply-accumulates each second."""
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=dtype) for _ in range(2))
    output = torch.empty_like(left)

    def rate() -> float:
        synchronise(device)
        start = time.perf_counter()
        torch.mm(left, right, out=output)
        synchronise(device)
        return MATRIX_SIZE**3 / (time.perf_counter() - start)

    rate()
    return rate


def measure(
    contenders: dict[str, Contender], setting: Setting, arguments: argparse.Namespace, progress: tqdm
) -> list[Row]:
    """All models under one setting. One that the setting does not fit is left out, with a message."""
    runners = []
    kinds = [Runner, OnnxRunner] if arguments.onnxruntime and setting.step == "forward" else [Runner]
    for (name, contender), kind in itertools.product(contenders.items(), kinds):
        progress.set_postfix_str(f"preparing {name}")
        try:
            runners.append(kind(name, contender, setting, arguments))
        except (ValueError, ImportError, NotImplementedError) as error:
            print(f"left out: {name} with {setting}: {error}", file=sys.stderr)
        progress.update()
    rate = matrix_product(arguments.device, DTYPES[setting.dtype])
    rates, times = [], {runner.name: [] for runner in runners}
    for _ in range(arguments.rounds):
        rates.append(rate())
        for runner in runners:
            progress.set_postfix_str(f"timing {runner.name}")
            times[runner.name].append(runner.seconds())
            progress.update()
    matrix_rate = statistics.median(rates)
    rows = []
    for runner in runners:
        progress.set_postfix_str(f"counting {runner.name}")
        seconds, macs, peer = statistics.median(times[runner.name]), runner.macs(), runner.contender.peer
        # forward and backward: once more for the gradient of the input, once more for that of the weights
        work = macs * (3 if setting.step == "train" else 1)
        ratios = [own / other for own, other in zip(times[runner.name], times.get(peer, []), strict=False)]
        rows.append(
            Row(
                model=runner.name,
                peer=peer,
                setting=setting,
                seconds=seconds,
                clips_per_second=setting.batch_size / seconds,
                ratio=statistics.median(ratios) if ratios else None,
                peak_memory=runner.peak_memory(),
                macs=macs,
                parameters=runner.parameters,
                matrix_rate=matrix_rate,
                efficiency=work / seconds / matrix_rate,
                first_call=runner.first_call,
            )
        )
    return rows


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    head = "model | batch | dtype | attention | pass | ms | clips/s | ratio | peak MB | G MACs | M parameters"
    lines = [[*head.split(" | "), "of matrix products", "first / later call", "top-1"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        setting = row.setting
        lines.append(
            [
                row.model,
                str(setting.batch_size),
                setting.dtype,
                setting.attention,
                f"{setting.step}, compiled" if setting.compiled else setting.step,
                f"{1000 * row.seconds:.1f}",
                f"{row.clips_per_second:.2f}",
                "" if row.ratio is None else f"{row.ratio:.2f} of {row.peer}",
                "" if row.peak_memory is None else f"{row.peak_memory / 1e6:.1f}",
                f"{row.macs / 1e9:.1f}",
                f"{row.parameters / 1e6:.1f}",
                f"{row.efficiency:.2f}",
                f"{row.first_call / row.seconds:.1f}",
                "",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(device: str) -> dict[str, str | int]:
    """What the figures depend on."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def draw(rows: list[Row], path: Path) -> None:
    """Cost against size: time of a clip over its multiply-accumulates, the area of a dot its parameters."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    figure = pictures.new_figure(7 * len(settings), 5)
    grid = figure.subplots(1, len(settings), squeeze=False)
    for axes, setting in zip(grid[0], settings, strict=True):
        shown = [row for row in rows if row.setting == setting]
        names = list(dict.fromkeys(row.model for row in shown))
        for index, row in enumerate(shown):
            colour = f"C{names.index(row.model)}"
            work, cost = row.macs / setting.batch_size / 1e9, 1000 / row.clips_per_second
            axes.scatter(work, cost, s=20 + row.parameters / 5e5, color=colour, alpha=0.6)
            offset = (8, 8 if index % 2 else -12)
            axes.annotate(
                row.model,
                (work, cost),
                xytext=offset,
                textcoords="offset points",
                fontsize=pictures.SMALL,
                color=colour,
            )
        sizes = sorted(row.macs / setting.batch_size / 1e9 for row in shown)
        ends = [sizes[0] / 1.5, sizes[-1] * 1.5]
        passes = 3 if setting.step == "train" else 1
        limit = [1e12 * passes * end / shown[0].matrix_rate for end in ends]
        axes.plot(ends, limit, color=pictures.GREY, linestyle="--", label="matrix products alone")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.margins(0.2)
        axes.set_xlabel("G multiply-accumulates of a clip, forward")
        axes.set_ylabel("ms for each clip")
        compiled = ", compiled" if setting.compiled else ""
        axes.set_title(
            f"{setting.step}{compiled}, {setting.dtype}, {setting.attention}, batch {setting.batch_size}",
            fontsize=pictures.TEXT,
        )
        axes.legend(loc="lower right", fontsize=pictures.SMALL)
        axes.grid(alpha=0.3, which="both")
    figure.suptitle("Cost against size (area of a dot: parameters)", fontsize=pictures.TITLE)
    pictures.save_figure(figure, path)


def write_results(rows: list[Row], arguments: argparse.Namespace) -> None:
    results = {
        "command": " ".join(["python", "examples/benchmarks/benchmark.py", *arguments.command]),
        "machine": machine(arguments.device),
        "rows": [asdict(row) for row in rows],
    }
    write_json(arguments.output_dir / "results.json", results)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure models against each other and against the machine.",
        epilog=f"models: {', '.join(catalogue())}",
    )
    parser.add_argument("--models", nargs="*", metavar="NAME", help="default: all; the names stand below")
    parser.add_argument(
        "--reference",
        nargs="*",
        default=[],
        metavar="MODULE:CALLABLE",
        help="other implementations: the callable returns a module and the shape of one clip; their peer is the first "
        "of --models",
    )
    parser.add_argument("--batch_size", nargs="+", type=int, default=[1])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--attention", nargs="+", default=["sdpa"], help="eager, sdpa, flash_attention_2, ...")
    parser.add_argument("--passes", nargs="+", choices=("forward", "train"), default=["forward"])
    parser.add_argument("--compile", choices=("no", "yes", "both"), default="no")
    parser.add_argument("--compile_mode", default="default", help="of torch.compile; reduce-overhead: CUDA graphs")
    parser.add_argument("--onnxruntime", action="store_true", help="each model once more in ONNX Runtime")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="every model with a few channels: a trial of the command")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_output"))
    arguments = parser.parse_args(argv)
    arguments.command = sys.argv[1:] if argv is None else argv
    known = catalogue(arguments.smoke)
    arguments.models = arguments.models or list(known)
    unknown = [name for name in arguments.models if name not in known]
    if unknown:
        parser.error(f"unknown models {unknown}; there are {', '.join(known)}")
    for name in ("rounds", "threads", *(["batch_size"] if min(arguments.batch_size) < 1 else [])):
        if name == "batch_size" or getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    if arguments.onnxruntime and not all(map(importlib.util.find_spec, ("onnxruntime", "onnxscript"))):
        parser.error("--onnxruntime needs: pip install onnxruntime onnxscript")
    try:
        references = {name: import_reference(name, arguments.models[0]) for name in arguments.reference}
    except ValueError as error:
        parser.error(str(error))
    arguments.contenders = {name: known[name] for name in arguments.models} | references
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    torch.set_num_threads(arguments.threads)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    compiled = {"no": [False], "yes": [True], "both": [False, True]}[arguments.compile]
    settings = [
        Setting(*values)
        for values in itertools.product(
            arguments.batch_size, arguments.dtype, arguments.attention, compiled, arguments.passes
        )
    ]
    rows = []
    steps = len(settings) * len(arguments.contenders) * (arguments.rounds + 1)
    with tqdm(total=steps, desc="measuring", unit="call", disable=None) as progress:
        for setting in settings:
            rows += measure(arguments.contenders, setting, arguments, progress)
            torch.compiler.reset()
    if not rows:
        print("error: no model could be measured", file=sys.stderr)
        return 1
    print(", ".join(f"{name} {value}" for name, value in machine(arguments.device).items()))
    print(
        f"matrix products: {', '.join(f'{2 * rate / 1e9:.0f}' for rate in {row.matrix_rate for row in rows})} GFLOP/s"
    )
    print(table(rows))
    write_results(rows, arguments)
    draw(rows, arguments.output_dir / "cost.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
