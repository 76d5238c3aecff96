"""How fast frames come out of videos: this package's reader and processor against those of Transformers, side by side.

    python examples/benchmarks/benchmark_reading.py --output_dir reading

Writes the videos first (640 x 360, H.264: 10 seconds and 10 minutes, with a keyframe each second and with x264's own
keyframes), then reads 8, 16 and 32 frames of each, in turns, and prints a Markdown table of median times. "ideal" is
the share of frames that must be decoded: a full read's over those from the nearest keyframes on.
"""

import argparse
import bisect
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from tqdm import tqdm
from transformers import VideoMAEImageProcessorPil
from transformers.video_utils import VideoMetadata, load_video

from hf_tps import TPSVideoProcessor
from hf_tps.training.results import write_json
from hf_tps.video_reading import read_video

HEIGHT, WIDTH, RATE = 360, 640, 30
# seconds, frames between keyframes (None: x264's own), times that each reader reads it
VIDEOS = {
    "10 s, keyframe each second": (10, RATE, 7),
    "10 s, x264's keyframes": (10, None, 7),
    "10 min, keyframe each second": (600, RATE, 3),
    "10 min, x264's keyframes": (600, None, 3),
}


def write_video(path: Path, seconds: int, keyframe_interval: int | None) -> None:
    """A camera that wanders over a large textured picture, with a blinking corner: something new in every frame."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (100, 160, 3), dtype=np.uint8)
    world = coarse.repeat(12, 0).repeat(12, 1)
    options = {"preset": "veryfast", "crf": "23"} | ({"g": str(keyframe_interval)} if keyframe_interval else {})
    begun = path.with_suffix(".part")
    with av.open(begun, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in tqdm(range(seconds * RATE), desc=f"writing {path.name}", unit="frame", disable=None):
            row = int((world.shape[0] - HEIGHT) * (0.5 + 0.5 * np.sin(index / 170)))
            column = int((world.shape[1] - WIDTH) * (0.5 + 0.5 * np.sin(index / 230)))
            frame = world[row : row + HEIGHT, column : column + WIDTH].copy()
            frame[:24, :24] = (index * 5 % 256, index // 256 % 256, 128)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(begun, path)


def indices(total: int, num_frames: int) -> list[int]:
    """Evenly spread, as Transformers does it."""
    return np.arange(0, total, total / num_frames).astype(int)[:num_frames].tolist()


def ideal_ratio(path: Path, num_frames: int) -> float:
    """Frames that a read from the start decodes, over those from the keyframe ahead of each wanted frame on."""
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [number for number, packet in enumerate(sorted(packets, key=lambda p: p.pts)) if packet.is_keyframe]
    decoded, at = 0, -1
    wanted = indices(len(packets), num_frames)
    for target in wanted:
        start = max(keys[bisect.bisect_right(keys, target) - 1], at + 1)
        decoded, at = decoded + target - start + 1, target
    return (wanted[-1] + 1) / decoded


def in_turns(first: Callable, second: Callable, repeats: int) -> tuple[float, float]:
    """Median seconds of both, called one after the other."""
    times = ([], [])
    for _ in range(repeats):
        for function, taken in zip((first, second), times, strict=True):
            begin = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


def measure(path: Path, num_frames: int, repeats: int) -> dict:

    def ours() -> tuple[torch.Tensor, VideoMetadata]:
        return read_video(path, lambda metadata: indices(metadata.total_num_frames, num_frames))

    def theirs() -> tuple[np.ndarray, VideoMetadata]:
        return load_video(
            str(path),
            backend="pyav",
            sample_indices_fn=lambda metadata, **_: indices(metadata.total_num_frames, num_frames),
        )

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frames, metadata = ours()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    wanted = list(metadata.frames_indices)
    reference, _ = theirs()
    same = np.array_equal(frames.permute(0, 2, 3, 1).numpy(), reference)

    processor = TPSVideoProcessor(num_frames=num_frames, size={"shortest_edge": 224})
    stock = VideoMAEImageProcessorPil()
    reading = in_turns(ours, theirs, repeats)
    processing = in_turns(
        lambda: processor(str(path), return_tensors="pt"),
        lambda: stock(list(theirs()[0]), return_tensors="pt"),
        repeats,
    )
    return {
        "video": path.stem,
        "num_frames": num_frames,
        "last_frame": wanted[-1],
        "same_pixels": same,
        "reader_seconds": reading[0],
        "load_video_seconds": reading[1],
        "processor_seconds": processing[0],
        "stock_processor_seconds": processing[1],
        "ideal_ratio": ideal_ratio(path, num_frames),
        "memory_mib": grown,
    }


def table(rows: list[dict]) -> str:
    lines = [
        "| video | frames | load_video, ms | reader, ms | faster | ideal | stock processor, ms | processor, ms "
        "| faster | same pixels |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reader, stock = row["reader_seconds"], row["load_video_seconds"]
        ours, theirs = row["processor_seconds"], row["stock_processor_seconds"]
        lines.append(
            f"| {row['video']} | {row['num_frames']} | {1e3 * stock:.0f} | {1e3 * reader:.0f} | {stock / reader:.1f} x "
            f"| {row['ideal_ratio']:.1f} x | {1e3 * theirs:.0f} | {1e3 * ours:.0f} | {theirs / ours:.1f} x "
            f"| {'yes' if row['same_pixels'] else 'NO'} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument(
        "--output_dir", type=Path, default=Path("reading"), help="videos and results.json (default reading)"
    )
    parser.add_argument("--num_frames", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--only", nargs="+", choices=list(VIDEOS), help="default: all videos")
    parser.add_argument("--seconds", type=int, help="length of every video, for a quick look")
    parser.add_argument("--repeats", type=int, help="times that each reader reads a video")
    arguments = parser.parse_args(argv)
    if min(arguments.num_frames) < 1 or (arguments.seconds or 1) < 1 or (arguments.repeats or 1) < 1:
        parser.error("--num_frames, --seconds and --repeats must be at least 1")
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.only or VIDEOS:
        seconds, keyframe_interval, repeats = VIDEOS[name]
        seconds = arguments.seconds or seconds
        path = arguments.output_dir / f"{name}{f', {seconds} s' if arguments.seconds else ''}.mp4"
        if not path.exists():
            write_video(path, seconds, keyframe_interval)
        for num_frames in tqdm(arguments.num_frames, desc=name, unit="setting", disable=None):
            rows.append(measure(path, num_frames, arguments.repeats or repeats))
    results = {"rows": rows, "av": av.__version__, "cores": os.cpu_count()}
    write_json(arguments.output_dir / "results.json", results)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
