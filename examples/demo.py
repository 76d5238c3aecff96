"""
The main job from end to end, for `make demo`: an original checkpoint is converted and classifies a video.

    python examples/demo.py [VIDEO]

No trained weights can be shipped, so the checkpoint is written here, with random weights, in the format of the GitHub
release. Everything after that is what a user does with a real one; only the labels mean nothing.
"""

import argparse
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from hf_tps import TPSConfig, TPSForVideoClassification
from hf_tps.temporal_shift import PATCH_SHIFT_PATTERNS
from hf_tps.window_layout import relative_position_index

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "demo_output"


def write_video(path: Path, frames: int = 90, height: int = 240, width: int = 320) -> None:
    """Three seconds of H.264: a bright disc that travels over a textured background."""
    rng = np.random.default_rng(0)
    background = rng.integers(40, 120, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    rows, columns = np.mgrid[:height, :width]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, "yuv420p", Fraction(1, 30)
        for index in range(frames):
            picture = background.copy()
            centre_row, centre_column = height * (0.5 + 0.25 * np.sin(index / 9)), width * (0.1 + 0.8 * index / frames)
            picture[(rows - centre_row) ** 2 + (columns - centre_column) ** 2 < 32**2] = (250, 200, 60)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_original_checkpoint(path: Path) -> None:
    """A file as mmaction saves it: TPS-Tiny for Kinetics-400, random weights, every key of the release."""
    sys.path.insert(0, str(ROOT / "conversion"))
    from convert_tps import original_video_name

    torch.manual_seed(0)
    config = TPSConfig(num_labels=400, initializer_range=0.08)
    state_dict = {original_video_name(n): t for n, t in TPSForVideoClassification(config).state_dict().items()}
    kernel = state_dict["backbone.patch_embed.proj.weight"]
    state_dict["backbone.patch_embed.proj.weight"] = kernel.unflatten(
        1, (config.num_channels, config.tubelet_size, config.patch_size, config.patch_size)
    )
    for suffix, pattern in (("", PATCH_SHIFT_PATTERNS["C"]), ("_old", None)):
        index = relative_position_index(16, (7, 7), 7, pattern, "key_frame_0", torch.device("cpu"))
        for stage, depth in enumerate(config.depths):
            for block in range(depth):
                state_dict[f"backbone.layers.{stage}.blocks.{block}.attn.relative_position_index{suffix}"] = index
    torch.save({"meta": {"epoch": 30}, "state_dict": state_dict}, path)


def step(title: str, *command: str) -> None:
    print(f"\n== {title}\n$ python {' '.join(command)}", flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    print(f"({time.perf_counter() - start:.0f} s)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("video", nargs="?", type=Path, help="a video of yours (default: one is written)")
    video = parser.parse_args().video
    if video is not None and not video.is_file():
        parser.error(f"there is no file {video}")
    OUTPUT.mkdir(exist_ok=True)
    if video is None:
        video = OUTPUT / "disc.mp4"
        write_video(video)
        print(f"wrote {video.relative_to(ROOT)}")
    checkpoint = OUTPUT / "original_tps_tiny_k400.pth"
    write_original_checkpoint(checkpoint)
    print(f"wrote {checkpoint.relative_to(ROOT)}: the release's format, RANDOM weights")

    model, picture = OUTPUT / "tps-t-k400", OUTPUT / "answer.png"
    names = [str(path.relative_to(ROOT)) for path in (checkpoint, model, picture)]
    step("convert", "conversion/convert_tps.py", names[0], "--output_dir", names[1], "--overwrite")
    step(
        "classify (12 views of the video, the paper's protocol)",
        *("examples/classify.py", str(video.resolve()), "--model", names[1], "--plot", names[2]),
    )
    print(f"\nThe weights are random, so the labels mean nothing. Look at {names[2]}.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
