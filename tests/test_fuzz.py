"""Damaged and hostile files: every reader answers, or raises the error that its docstring names.

A bounded run is part of the suite; `make fuzz` takes longer.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskcls.checkpoints import open_checkpoint, save_checkpoint
from maskcls.config import TrainConfig, file_values, read_yaml, resolve, to_yaml
from maskcls.data.fixes import read_fixes
from maskcls.data.profiles import parse_folder_name, read_profiles
from maskcls.errors import CheckpointError, ConfigError, DataError, PictureError
from maskcls.evaluation.oof import read_oof
from maskcls.images import MAX_PIXELS, decode, read_image
from maskcls.labels import TASKS
from maskcls.manifest import Manifest, OnnxManifest
from maskcls.models import create_model, restore_model
from maskcls.onnx.convert import convert
from maskcls.onnx.fuse import fuse
from maskcls.preprocessing import PreprocessSpec
from maskcls.runtime.session import check_onnx
from maskcls.runtime.sources import list_pictures

fuzz = settings(
    max_examples=int(os.environ.get("FUZZ", "60")),
    suppress_health_check=list(HealthCheck),
)
Mutation = tuple[str, float, bytes]

mutations = st.lists(
    st.tuples(
        st.sampled_from(("set", "insert", "cut", "end", "repeat")),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    max_size=6,
)


def mutated(content: bytes, changes: list[Mutation]) -> bytes:
    """The content, damaged at places given as parts of its length."""
    for kind, part, data in changes:
        place = int(part * len(content))
        head, tail = content[:place], content[place:]
        content = {
            "set": head + data + tail[len(data) :],
            "insert": head + data + tail,
            "cut": head + tail[len(data) :],
            "end": head,
            "repeat": head + tail[:32] + tail,
        }[kind]
    return content


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    content = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # turned
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


PICTURES = {kind: encoded(kind) for kind in ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF")}


@fuzz
@given(st.sampled_from(list(PICTURES)), mutations)
@pytest.mark.filterwarnings("ignore")  # of Pillow, about what it meets on the way
def test_pictures(kind: str, changes: list[Mutation]) -> None:
    try:
        image = decode(mutated(PICTURES[kind], changes), "a.jpg")
    except PictureError as error:
        assert str(error).startswith("a.jpg: ")
        return
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= MAX_PIXELS
    np.asarray(image)


@fuzz
@given(st.binary(max_size=200))
@pytest.mark.filterwarnings("ignore")
def test_anything_for_a_picture(content: bytes) -> None:
    with suppress(PictureError):
        decode(content, "a.jpg")


@fuzz
@given(st.text())
@example("1_male_a_30\0")
@example("1_male_a_3\u0660")
def test_folder_names(name: str) -> None:
    with suppress(DataError):
        _, _, _, age = parse_folder_name(name)
        assert 0 <= age <= 130


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a person in it."""
    root = tmp_path_factory.mktemp("fuzz")
    (root / "images" / "1_male_a_30").mkdir(parents=True)
    (root / "images" / "1_male_a_30" / "mask1.png").write_bytes(PICTURES["PNG"])
    (root / "answers.csv.json").write_text('{"task": "gender"}', "utf-8")
    return root


TABLES: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "train.csv": (
        b"id,gender,race,age,path\n1,male,a,30,1_male_a_30\n",
        lambda file: read_profiles(file.parent),
    ),
    "fixes.csv": (
        b"target,field,old,new,why\n1_male_a_30,gender,male,female,seen\n",
        read_fixes,
    ),
    "answers.csv": (
        b"data_dir,path,person,fold,label,answer,p_0,p_1\nd,a/mask1.jpg,a,0,1,0,0.75,0.25\n",
        read_oof,
    ),
    "oof.csv.json": (
        b'{"task": "gender", "fixes": [{"target": "a", "field": "age", "old": "3", '
        b'"new": "4", "why": ""}]}',
        lambda file: read_oof(file.with_name("oof.csv")),
    ),
    "list.csv": (
        "ImageID,ans\nimages/1_male_a_30/mask1.png,0\n가.png,0\n".encode(),
        lambda file: [read_image(source.path) for source in list_pictures(file)],
    ),
    "list.txt": (
        "images/1_male_a_30/mask1.png\n가.png\n".encode(),
        lambda file: [read_image(source.path) for source in list_pictures(file)],
    ),
}


@fuzz
@given(name=st.sampled_from(list(TABLES)), changes=mutations)
@example(name="train.csv", changes=[("insert", 0.8, b"\0")])
@example(name="list.csv", changes=[("insert", 0.9, "가".encode() + b"x" * 300)])
@example(name="list.txt", changes=[("insert", 0.9, "가".encode() + b"x" * 5000)])
@example(name="list.txt", changes=[("insert", 0.99, b"\0")])
def test_tables(place: Path, name: str, changes: list[Mutation]) -> None:
    content, read = TABLES[name]
    file = place / name
    file.write_bytes(mutated(content, changes))
    try:
        with suppress(DataError):  # PictureError is one
            read(file)
    finally:
        file.unlink()


CONFIG = (to_yaml(TrainConfig()) + "age: {lr: 0.1}\n").encode()


@fuzz
@given(mutations)
def test_config_files(place: Path, changes: list[Mutation]) -> None:
    file = place / "config.yaml"
    file.write_bytes(mutated(CONFIG, changes))
    with suppress(ConfigError):
        values = read_yaml(file)
        file_values(values, "age")
        resolve("age", "scratch", values)


SIZE = (32, 32)


def manifest(task: str) -> Manifest:
    spec = PreprocessSpec(*SIZE)
    return Manifest(task, TASKS[task].class_names, spec, "base", {}, {"tta": "none", "lr": 0.1})


MANIFESTS = {
    Manifest: manifest("age").to_json(),
    OnnxManifest: OnnxManifest("network", (manifest("age"),), ("0" * 64,), "fp32", 20).to_json(),
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@fuzz
@given(st.sampled_from(list(MANIFESTS)), mutations)
def test_manifests(kind: type[Manifest] | type[OnnxManifest], changes: list[Mutation]) -> None:
    text = mutated(MANIFESTS[kind].encode(), changes).decode("utf-8", "replace")
    with suppress(CheckpointError):
        kind.from_json(text)


@fuzz
@given(st.sampled_from(list(MANIFESTS)), st.data())
def test_manifests_of_other_values(
    kind: type[Manifest] | type[OnnxManifest], data: st.DataObject
) -> None:
    content = json.loads(MANIFESTS[kind])
    content[data.draw(st.sampled_from(sorted(content)))] = data.draw(values)
    with suppress(CheckpointError):
        again = kind.from_json(json.dumps(content))
        assert kind.from_json(again.to_json()) == again


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    torch.manual_seed(0)
    model = create_model("base", 3, SIZE)
    save_checkpoint({"manifest": manifest("age").to_json(), "model": model.state_dict()}, file)
    return file.read_bytes()


@fuzz
@given(changes=mutations)
def test_checkpoints(place: Path, checkpoint: bytes, changes: list[Mutation]) -> None:
    file = place / "best.pt"
    file.write_bytes(mutated(checkpoint, changes))
    with suppress(CheckpointError):
        content, source = open_checkpoint(file)
        restore_model(content, source)


@pytest.fixture(scope="module")
def fused() -> bytes:
    """A fused file of two small networks."""
    networks = []
    torch.manual_seed(0)
    for task in ("mask_gender", "age"):
        model = create_model("base", TASKS[task].num_classes, SIZE)
        networks.append((convert(model, manifest(task)), manifest(task)))
    proto = fuse(networks)
    described = OnnxManifest(
        "fused", tuple(entry for _, entry in networks), ("0" * 64,) * 2, "fp32", 20
    )
    onnx.helper.set_model_props(proto, {"maskcls": described.to_json()})
    content: bytes = proto.SerializeToString()
    check_onnx(content, Path("a.onnx"))
    return content


@fuzz
@given(changes=mutations)
def test_onnx_files(fused: bytes, changes: list[Mutation]) -> None:
    with suppress(CheckpointError):
        check_onnx(mutated(fused, changes), Path("a.onnx"))
