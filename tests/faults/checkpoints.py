"""Broken checkpoints of every family, through the real converters: each is converted right, or refused in one line.

What is broken is a name in one of the tables below and a seed. A table says what must come of it: "same" (the answer of
the whole file), "error", or None (either; what is converted must be what torch reads from the file).
"""

import contextlib
import copy
import functools
import io
import json
import os
import pickle
import random
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForVideoClassification

from conversion import convert_laps, convert_tps, convert_xvit
from tests import golden_cases
from tests.faults.sandbox import Case, Outcome
from tests.goldens import recipe

Random = random.Random
MEGABYTES = 400.0


@dataclass
class Original:
    """What a converter is given: a file, and what lies beside it."""

    content: dict
    wrapper: str  # under which name of `content` the tensors stand
    config: dict | None = None  # the release's YAML
    flags: list[str] = field(default_factory=list)
    labels: tuple[str, bytes] | None = None  # file name and content

    @property
    def tensors(self) -> dict:
        return self.content[self.wrapper]


# --- the originals ---------------------------------------------------------------------------------------------------


def _tensors(case: str, **kwargs: int) -> dict[str, torch.Tensor]:
    return golden_cases.tensors(recipe.synth_state_dict(golden_cases.load(case)["manifest"], **kwargs))


def _tps() -> Original:
    tensors = golden_cases.original_state_dict(golden_cases.load("tps_micro"))
    return Original({"meta": {"epoch": 30}, "state_dict": tensors}, "state_dict")


def _swin() -> Original:
    tensors = {k.removeprefix("backbone."): t for k, t in _tensors("tps_micro").items() if k.startswith("backbone.")}
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"][:, :, 0].clone()
    for key in [key for key in tensors if key.endswith("bias_table")]:
        tensors[key] = tensors[key][:169].clone()
    return Original({"model": tensors}, "model", flags=["--num_labels", "4"])


def _xvit() -> Original:
    config = yaml.safe_load(golden_cases.load("xvit_micro")["cfg_yaml"])
    content = {"epoch": 35, "model_state": _tensors("xvit_micro"), "optimizer_state": {}}
    return Original(content, "model_state", config, ["--num_attention_heads", "3"])


def _vit() -> Original:
    prefix = "base_model."
    tensors = {k.removeprefix(prefix): t for k, t in _tensors("xvit_micro").items() if k.startswith(prefix)}
    tensors.pop("temp_embed")
    return Original({"model": tensors}, "model", flags=["--num_attention_heads", "3", "--num_labels", "4"])


def _visformer() -> Original:
    config = golden_cases.load("laps_visformer_micro")["config"]
    data = ("NUM_FRAMES", "SAMPLING_RATE", "TEST_CROP_SIZE", "MEAN", "STD")
    model = ("NET", "FOLD_DIV", "S2_SKIP_LEVEL", "S3_SKIP_LEVEL")
    sections = {"DATA": {name: config[name] for name in data}, "MODEL": {name: config[name] for name in model}}
    content = {"epoch": 18, "state_dict": _tensors("laps_visformer_micro", integer_fill=7), "optimizer": {}}
    return Original(content, "state_dict", sections, ["--num_attention_heads", "3"])


def _visformer_image() -> Original:
    prefix = "module.base_model."
    tensors = {k.removeprefix(prefix): t for k, t in _tensors("laps_visformer_micro", integer_fill=0).items()}
    return Original({"model": tensors}, "model", flags=["--num_attention_heads", "3", "--num_labels", "4"])


def _laps_vit() -> Original:
    tensors = {f"module.base_model.{key}": tensor for key, tensor in _vit().tensors.items()}
    tensors["module.base_model.head.weight"] = torch.randn(9, 48, generator=torch.Generator().manual_seed(0))
    tensors["module.base_model.head.bias"] = torch.randn(9, generator=torch.Generator().manual_seed(1))
    config = {
        "DATA": {"NUM_FRAMES": 8},
        "MODEL": {"NET": "ViT_LAPS", "FOLD_DIV": 4, "S2_SKIP_LEVEL": [1, 2, 3, "None"]},
    }
    return Original({"state_dict": tensors}, "state_dict", config, ["--num_attention_heads", "3"])


ORIGINALS: dict[str, tuple[Callable[[list[str]], int], dict[str, Callable[[], Original]]]] = {
    "tps": (convert_tps.main, {"video": _tps, "image": _swin}),
    "xvit": (convert_xvit.main, {"video": _xvit, "image": _vit}),
    "laps": (
        convert_laps.main,
        {"visformer": _visformer, "vit": _laps_vit, "visformer image": _visformer_image, "vit image": _vit},
    ),
}


# --- what is broken --------------------------------------------------------------------------------------------------

Break = Callable[[Original, Random], None]
EITHER, SAME, ERROR = None, "same", "error"


def _weight(original: Original, rng: Random) -> str:
    """The name of a weight, not of an index buffer."""
    return rng.choice([name for name, tensor in original.tensors.items() if tensor.is_floating_point()])


def _replace(change: Callable[[torch.Tensor], torch.Tensor]) -> Break:
    def apply(original: Original, rng: Random) -> None:
        name = _weight(original, rng)
        original.tensors[name] = change(original.tensors[name])

    return apply


def _with_value(value: float, dtype: torch.dtype = torch.float32) -> Break:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.to(dtype).clone()
        changed.view(-1)[-1] = value
        return changed

    return _replace(change)


def _rename(original: Original, rng: Random) -> None:
    name = _weight(original, rng)
    original.tensors[rng.choice([f"{name}x", f"x{name}", name.replace(".", "..", 1) or "."])] = original.tensors.pop(
        name
    )


def _layer_jump(number: str) -> Break:
    def apply(original: Original, rng: Random) -> None:
        name = rng.choice(
            [n for n, t in original.tensors.items() if re.search(r"\.\d+\.", n) and t.is_floating_point()]
        )
        original.tensors[re.sub(r"\.\d+\.", f".{number}.", name, count=1)] = original.tensors.pop(name)

    return apply


def _tied(original: Original, rng: Random) -> None:
    """Two names of one shape share their numbers, as tied weights do."""
    name = _weight(original, rng)
    shape = original.tensors[name].shape
    for other, tensor in original.tensors.items():
        if tensor.shape == shape and tensor.is_floating_point():
            original.tensors[other] = original.tensors[name]


def _views_of_one(original: Original, rng: Random) -> None:
    """All weights are views of one long tensor."""
    names = [name for name, tensor in original.tensors.items() if tensor.is_floating_point()]
    whole = torch.cat([original.tensors[name].flatten() for name in names])
    parts = whole.split([original.tensors[name].numel() for name in names])
    for name, part in zip(names, parts, strict=True):
        original.tensors[name] = part.view(original.tensors[name].shape)


def _deep(levels: int, kind: type) -> Break:
    def apply(original: Original, rng: Random) -> None:
        nested: object = 0
        for _ in range(levels):
            nested = (nested,) if kind is tuple else [nested]
        original.content["extra"] = nested

    return apply


class _Runs:
    """A pickle of it calls a function when it is read."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def _malicious(original: Original, rng: Random) -> None:
    original.content["extra"] = rng.choice(
        [
            _Runs(os.system, "touch pwned"),
            _Runs(eval, "open('pwned', 'w')"),
            _Runs(open, "pwned", "w"),
            _Runs(getattr, "text", "upper"),
            _Runs(bytearray, 2**36),
        ]
    )


TENSORS: dict[str, tuple[Break, str | None]] = {
    "nothing": (lambda original, rng: None, SAME),
    "infinite": (_with_value(float("inf")), ERROR),
    "not a number": (_with_value(float("nan")), ERROR),
    "beyond float32": (_with_value(1e300, torch.float64), ERROR),
    "float64": (_replace(torch.Tensor.double), SAME),
    "complex": (_replace(lambda tensor: torch.complex(tensor, tensor)), ERROR),
    **{
        f"{dtype}": (_replace(lambda tensor, dtype=dtype: (10 * tensor).to(dtype)), ERROR)
        for dtype in (torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)
    },
    "float16": (_replace(torch.Tensor.half), EITHER),
    "bfloat16": (_replace(torch.Tensor.bfloat16), EITHER),
    "sparse": (_replace(torch.Tensor.to_sparse), ERROR),
    "quantised": (_replace(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), ERROR),
    "without values": (_replace(lambda tensor: tensor.to("meta")), ERROR),
    "nested": (_replace(lambda t: torch.nested.nested_tensor([t.flatten(), t.flatten()[:1]])), ERROR),
    "expanded": (_replace(lambda tensor: torch.zeros(1).expand(10**9, *tensor.shape[1:])), ERROR),
    "expanded to its own shape": (_replace(lambda tensor: torch.zeros(1).expand(tensor.shape)), EITHER),
    "parameter": (_replace(torch.nn.Parameter), SAME),
    "not contiguous": (_replace(lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0)), SAME),
    "tied": (_tied, EITHER),
    "views of one": (_views_of_one, SAME),
    "missing": (lambda original, rng: original.tensors.pop(_weight(original, rng)), EITHER),
    "one more": (lambda original, rng: original.tensors.update({"one.more": torch.zeros(3)}), ERROR),
    "renamed": (_rename, EITHER),
    "no text as a name": (
        lambda original, rng: original.tensors.update({rng.choice([3, None, (1, 2)]): torch.zeros(3)}),
        ERROR,
    ),
    "control characters in a name": (lambda o, rng: o.tensors.update({"\x1b[2J\nerror: two": torch.zeros(3)}), ERROR),
    "layer 99999999": (_layer_jump("99999999"), ERROR),
    "layer of 5000 digits": (_layer_jump("9" * 5000), ERROR),
    "layer left out": (_layer_jump("17"), ERROR),
    "one axis": (_replace(torch.Tensor.flatten), EITHER),
    "one axis more": (_replace(lambda tensor: tensor[None]), EITHER),
    "one row more": (_replace(lambda tensor: torch.cat((tensor, tensor[:1]))), EITHER),
    "empty": (_replace(lambda tensor: tensor[:0].clone()), EITHER),
    "a number": (_replace(lambda tensor: tensor.flatten()[0].clone()), EITHER),
    "no tensor": (lambda original, rng: original.tensors.update({_weight(original, rng): "text"}), ERROR),
    "no weights": (lambda original, rng: original.tensors.clear(), ERROR),
    "deep lists": (_deep(100, list), SAME),
    "deep tuples": (_deep(100, tuple), SAME),
    "malicious": (_malicious, ERROR),
}


def _flip(content: bytearray, rng: Random) -> None:
    for _ in range(rng.choice([1, 1, 4, 64])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _flip_at_an_end(content: bytearray, rng: Random) -> None:
    """In the pickle at the beginning, or in the directory at the end."""
    at = rng.randrange(min(4000, len(content)))
    content[rng.choice([at, -1 - at])] ^= 1 << rng.randrange(8)


def _cut(content: bytearray, rng: Random) -> None:
    del content[rng.randrange(len(content)) :]


def _cut_out(content: bytearray, rng: Random) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.randrange(1, 5000)]


def _insert(content: bytearray, rng: Random) -> None:
    at = rng.randrange(len(content))
    content[at:at] = rng.randbytes(rng.randrange(1, 200))


def _zeros(content: bytearray, rng: Random) -> None:
    start = rng.randrange(len(content))
    end = min(start + 4096, len(content))
    content[start:end] = bytes(end - start)


def _deflated(content: bytearray, rng: Random) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    content[:] = packed.getvalue()


def _deep_pickle(content: bytearray, rng: Random) -> None:
    """A tuple in a tuple in a tuple, a million deep or a thousand million elements wide, and a key of a dict."""
    deep, wide = b")" + b"\x85" * 10**6, b")" + b"q\x00h\x00\x86" * 60
    described = b"\x80\x02}" + rng.choice([deep, wide]) + b"K\x01s."
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as plain, zipfile.ZipFile(packed, "w") as archive:
        for name in plain.namelist():
            archive.writestr(name, described if name.endswith("/data.pkl") else plain.read(name))
    content[:] = rng.choice([packed.getvalue(), described])


def _text(content: bytearray, rng: Random) -> None:
    content[:] = b"version https://git-lfs.github.com/spec/v1\nsize 12345\n"


def _plain_pickle(content: bytearray, rng: Random) -> None:
    content[:] = pickle.dumps(rng.choice([{"a": 1}, _Runs(os.system, "touch pwned"), [1] * 1000]))


BYTES: dict[str, tuple[Callable[[bytearray, Random], None], str | None]] = {
    "bits flipped": (_flip, EITHER),
    "bit flipped at an end": (_flip_at_an_end, EITHER),
    "cut": (_cut, ERROR),
    "part cut out": (_cut_out, ERROR),
    "bytes inserted": (_insert, EITHER),
    "zeros": (_zeros, EITHER),
    "deflated": (_deflated, ERROR),
    "deep pickle": (_deep_pickle, ERROR),
    "text": (_text, ERROR),
    "plain pickle": (_plain_pickle, ERROR),
    "nothing left": (lambda content, rng: content.clear(), ERROR),
}

# Replaces an entry of the release's YAML: section (None: the whole file is this text), entry, value, what must come.
SETTINGS: dict[str, tuple[str | None, str, object, str | None]] = {
    "aliases": (
        None,
        "",
        "a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        ERROR,
    ),
    "alias of itself": (None, "", "DATA: &a [*a]", ERROR),
    "deep": (None, "", "DATA: " + "[" * 5000 + "]" * 5000, ERROR),
    "large": (None, "", "DATA: [" + "1, " * 400_000 + "1]", ERROR),
    "no text": (None, "", b"\xff\xfe\x00D", ERROR),
    "tag": (None, "", "DATA: !!python/object/apply:os.system ['touch pwned']", ERROR),
    "no date": (None, "", "DATA: 2001-99-99", ERROR),
    "list": (None, "", "- 1", ERROR),
    "section of a number": ("DATA", "", 5, ERROR),
    "section of a list": ("MODEL", "", [1], ERROR),
    **{f"frames {value}": ("DATA", "NUM_FRAMES", value, ERROR) for value in (10**9, 0, -8, "8", 2.5, True, [8])},
    **{f"pixels {value}": ("DATA", "TEST_CROP_SIZE", value, ERROR) for value in (10**9, -1, "big", float("inf"))},
    **{f"rate {value}": ("DATA", "SAMPLING_RATE", value, ERROR) for value in (10**9, 0, float("nan"))},
    "many frames": ("DATA", "NUM_FRAMES", 4096, EITHER),
    "many pixels": ("DATA", "TEST_CROP_SIZE", 8192, EITHER),
    **{
        f"mean {value}": ("DATA", "MEAN", value, ERROR)
        for value in ([float("nan")] * 3, [float("inf"), 0, 0], [0.5], 0.5, ["a", "b", "c"], {"a": 1}, [123.0] * 3)
    },
    **{f"spread {value}": ("DATA", "STD", value, ERROR) for value in ([0, 0, 0], [1e-320] * 3, [float("nan")] * 3)},
    "unknown entry": ("DATA", "UNKNOWN", {"a": [1, 2]}, SAME),
    "dropout": ("MODEL", "DROPOUT_RATE", -1, EITHER),
    "mixing as text": ("XVIT", "USE_XVIT", "no", EITHER),
    "mixing of nothing": ("XVIT", "SHIFT_DIV", 10**9, EITHER),
    "layers as text": ("XVIT", "LOCATIONS_LIST", "all", EITHER),
    "layers beyond": ("XVIT", "LOCATIONS_LIST", [10**9], EITHER),
    "network": ("MODEL", "NET", ["LAPS"], EITHER),
    "levels beyond": ("MODEL", "S2_SKIP_LEVEL", [10**9], EITHER),
    "levels of a number": ("MODEL", "S2_SKIP_LEVEL", 3, EITHER),
}


def _names(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


# Class names, made for the number of classes: file name, content, what must come.
LABELS: dict[str, tuple[str, Callable[[int], object], str | None]] = {
    "names": ("names.json", lambda n: _names(n), SAME),
    "names in lines": ("names.txt", lambda n: "\n".join(_names(n)), SAME),
    "one too few": ("names.txt", lambda n: "\n".join(_names(n - 1)), ERROR),
    "twice": ("names.json", lambda n: ["a"] * n, ERROR),
    "ids of halves": ("names.json", lambda n: {name: number + 0.5 for number, name in enumerate(_names(n))}, ERROR),
    "ids as decimals": ("names.json", lambda n: {f"{number}.0": name for number, name in enumerate(_names(n))}, ERROR),
    "ids of truth": ("names.json", lambda n: {name: bool(number) for number, name in enumerate(_names(n))}, ERROR),
    "ids twice": ("names.json", lambda n: dict.fromkeys(_names(n), 0), ERROR),
    "a name twice": ("names.json", lambda n: b'{"a": 0, "a": 1}', ERROR),
    "infinity": ("names.json", lambda n: b'{"a": Infinity}', ERROR),
    "long id": ("names.json", lambda n: b'{"a": ' + b"9" * 5000 + b"}", ERROR),
    "deep": ("names.json", lambda n: b"[" * 100_000, ERROR),
    "no text": ("names.txt", lambda n: b"\xff\xfe\x00", ERROR),
    "no names": ("names.json", lambda n: {}, ERROR),
    "null": ("names.json", lambda n: None, ERROR),
}


# --- the case --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Right:
    """What the whole file is converted to, and which weight of the file each converted weight is."""

    weights: dict[str, torch.Tensor]
    source_of: dict[str, str]
    settings: dict


def _write(folder: Path, original: Original, change: Callable[[bytearray], None] | None, old_format: bool) -> list[str]:
    """Write the files of a case; the arguments of the converter."""
    stream = io.BytesIO()
    torch.save(original.content, stream, _use_new_zipfile_serialization=not old_format)
    content = bytearray(stream.getvalue())
    if change is not None:
        change(content)
    (folder / "original.pth").write_bytes(content)
    arguments = [str(folder / "original.pth"), "--output_dir", str(folder / "out"), *original.flags]
    if original.config is not None:
        config = original.config.get("", None) or yaml.safe_dump(original.config)
        (folder / "config.yaml").write_bytes(config if isinstance(config, bytes) else config.encode())
        arguments += ["--original_config", str(folder / "config.yaml")]
    if original.labels is not None:
        name, labels = original.labels
        (folder / name).write_bytes(labels)
        arguments += ["--labels", str(folder / name)]
    return arguments


def _load(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Weights and settings (without the names of the classes) of a converted folder."""
    model = AutoModelForVideoClassification.from_pretrained(folder)
    processor = json.loads((folder / "video_preprocessor_config.json").read_text())
    config = {name: value for name, value in model.config.to_dict().items() if not name.endswith(("2id", "2label"))}
    for settings in (config, processor):
        settings.pop("_name_or_path", None)
    return model.state_dict(), {"config": config, "processor": processor}


def _converted(main: Callable[[list[str]], int], arguments: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = main(arguments)
    return code, said.getvalue()


@functools.cache
def _original(family: str, layout: str) -> Original:
    return ORIGINALS[family][1][layout]()


@functools.cache
def right_answer(family: str, layout: str) -> Right:
    """The conversion of the whole file."""
    original = _original(family, layout)
    with tempfile.TemporaryDirectory() as name:
        code, said = _converted(ORIGINALS[family][0], _write(Path(name), original, None, old_format=False))
        assert code == 0, said
        weights, settings = _load(Path(name) / "out")
    source_of = {}
    for converted, tensor in weights.items():
        same = [
            key
            for key, value in original.tensors.items()
            if value.numel() == tensor.numel() and torch.equal(value.flatten(), tensor.flatten().to(value.dtype))
        ]
        if len(same) == 1:
            source_of[converted] = same[0]
    return Right(weights, source_of, settings)


def _judge(folder: Path, main: Callable, arguments: list[str], right: Right, wrapper: str, must: str | None) -> tuple:
    before = sorted(path.name for path in folder.iterdir())
    code, said = _converted(main, arguments)
    after = sorted(path.name for path in folder.iterdir() if path.name != "out")
    if "pwned" in after:
        return Outcome.WRONG, "code of the file was run"
    if after != before or (code != 0 and (folder / "out").exists()):
        return Outcome.WRONG, f"left behind: {sorted(set(after) - set(before)) or 'out'}"
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code == 1:
        message = errors[0] if len(errors) == 1 else ""
        named = any(argument in message for argument in arguments if argument.startswith(str(folder)))
        if "Traceback" in said or "bug in hf_tps" in said or not named or not message.isprintable():
            return Outcome.UNCLEAR_ERROR, said
        return (Outcome.WRONG, f"refused: {message}") if must == SAME else (Outcome.CLEAR_ERROR, message)
    if code != 0 or errors:
        return Outcome.UNCLEAR_ERROR, f"exit code {code}\n{said}"
    if must == ERROR:
        return Outcome.WRONG, f"converted\n{said}"
    return _compare(folder, right, wrapper, must)


def _compare(folder: Path, right: Right, wrapper: str, must: str | None) -> tuple[Outcome, str]:
    """Whether the folder holds what torch reads from the file, or (`SAME`) what the whole file is converted to."""
    weights, settings = _load(folder / "out")
    infinite = [name for name, tensor in weights.items() if not tensor.float().isfinite().all()]
    if infinite:
        return Outcome.WRONG, f"not finite: {infinite}"
    if must == SAME:
        other = [name for name, tensor in weights.items() if not torch.equal(tensor, right.weights[name])]
        if other or weights.keys() != right.weights.keys() or settings != right.settings:
            return Outcome.WRONG, f"other weights {other} or settings {settings}"
        return Outcome.RIGHT, ""
    in_file = torch.load(folder / "original.pth", map_location="cpu", weights_only=True)
    in_file = in_file.get(wrapper, in_file)
    resized = settings["config"]["image_size"] != right.settings["config"]["image_size"]
    for name, key in right.source_of.items():
        if resized and name.endswith("position_embeddings"):
            continue
        tensor = in_file.get(key)
        if tensor is None or not torch.equal(weights[name].flatten(), tensor.flatten().to(weights[name].dtype)):
            return Outcome.WRONG, f"{name} is not {key} of the file"
    return Outcome.RIGHT, ""


def _check(family: str, layout: str, kind: str, broken: str, seed: str, folder: Path) -> tuple[Outcome, str]:
    rng = Random(seed)
    original, right = copy.deepcopy(_original(family, layout)), right_answer(family, layout)
    change: Callable[[bytearray], None] | None = None
    old_format = False
    if kind == "tensors":
        apply, must = TENSORS[broken]
        apply(original, rng)
        old_format = must == SAME and rng.random() < 0.5
    elif kind == "bytes":
        damage, must = BYTES[broken]
        old_format = damage not in (_deflated, _deep_pickle) and rng.random() < 0.3
        change = functools.partial(damage, rng=rng)
    elif kind == "settings":
        section, entry, value, must = SETTINGS[broken]
        _set(original, section, entry, value)
    else:
        name, make, must = LABELS[broken]
        labels = make(right.weights["classifier.bias"].numel())
        text = labels if isinstance(labels, bytes | str) else json.dumps(labels)
        original.labels = name, text if isinstance(text, bytes) else text.encode()
    arguments = _write(folder, original, change, old_format)
    return _judge(folder, ORIGINALS[family][0], arguments, right, original.wrapper, must)


def _set(original: Original, section: str | None, entry: str, value: object) -> None:
    assert original.config is not None
    if section is None:
        original.config = {"": value}
    elif not entry:
        original.config[section] = value
    elif isinstance(original.config.get(section), dict):
        original.config[section][entry] = value


def breaks_of(family: str) -> list[tuple[str, str, str]]:
    """Layout, kind and name of everything that can be broken in a family's files."""
    found = []
    for layout in ORIGINALS[family][1]:
        found += [(layout, "tensors", name) for name in TENSORS] + [(layout, "bytes", name) for name in BYTES]
        found += [(layout, "labels", name) for name in LABELS]
        if _original(family, layout).config is not None:
            found += [(layout, "settings", name) for name in SETTINGS]
    return found


def checkpoint_cases(seed: int, per_family: int) -> Iterator[Case]:
    """So many cases of each family: every break in every layout once, shuffled, then again with other numbers."""
    for family in ORIGINALS:
        for layout in ORIGINALS[family][1]:
            right_answer(family, layout)  # here, once for all processes of the cases
        breaks = breaks_of(family)
        order = Random(f"{seed} {family}")
        left: list[tuple[str, str, str]] = []
        for number in range(per_family):
            if not left:
                left = order.sample(breaks, len(breaks))
            layout, kind, broken = left.pop()
            name = f"{family} {layout}, {kind}: {broken} (seed {seed}, number {number})"
            check = functools.partial(_check, family, layout, kind, broken, f"{seed} {family} {number}")
            yield Case(name, check, megabytes=MEGABYTES)
