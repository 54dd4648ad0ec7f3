"""Only our own files are run, and only on the provider that was asked for."""

from __future__ import annotations

import builtins
import ctypes
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from maskcls.commands import doctor
from maskcls.errors import CheckpointError, MissingExtraError, ProviderError
from maskcls.labels import TASKS
from maskcls.manifest import ONNX_KEY, SEEN_KEY, Manifest, OnnxManifest
from maskcls.preprocessing import PreprocessSpec
from maskcls.runtime import Classifier, open_onnx
from maskcls.runtime import session as sessions
from maskcls.runtime.session import (
    import_onnxruntime,
    open_session,
    read_onnx,
    run_session,
    why_not,
    write_seen,
)

# What is said where CUDA cannot be had; tests/onnx/test_benchmarks.py has the other side.
without_cuda = pytest.mark.skipif(not why_not("cuda"), reason="needs a machine without CUDA")


def network(task: str = "age", **changes: Any) -> onnx.ModelProto:
    """The mean colour times a weight per class: the smallest file of the right kind."""
    count = TASKS[task].num_classes
    weight = np.random.default_rng(0).normal(size=(3, count)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", count])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
            onnx.numpy_helper.from_array(weight, "weight"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    spec = PreprocessSpec(32, 32)
    own = Manifest(task, TASKS[task].class_names, spec, "base", {})
    values = {"kind": "network", "networks": (own,), "checkpoints": ("0" * 64,)}
    values |= {"precision": "fp32", "opset": 20} | changes
    helper.set_model_props(proto, {ONNX_KEY: OnnxManifest(**values).to_json()})
    return proto


@pytest.fixture
def file(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "age.onnx")
    return tmp_path / "age.onnx"


def without_manifest(proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]


def broken_manifest(proto: onnx.ModelProto) -> None:
    helper.set_model_props(proto, {ONNX_KEY: '{"format": 1}'})


def newer_manifest(proto: onnx.ModelProto) -> None:
    helper.set_model_props(proto, {ONNX_KEY: '{"format": 99}'})


def broken_people(proto: onnx.ModelProto) -> None:
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    helper.set_model_props(proto, kept | {SEEN_KEY: "AAA"})


def other_output(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = proto.graph.output[0].name = "scores"


def weights_elsewhere(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[1]
    onnx.external_data_helper.set_external_data(tensor, "/etc/passwd")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (without_manifest, "carries no manifest of maskcls"),
        (broken_manifest, "not a manifest of maskcls"),
        (newer_manifest, "install a newer maskcls"),
        (broken_people, "trained-on people is damaged"),
        (other_output, "inputs and outputs are not those of its manifest"),
        (weights_elsewhere, "refers to weights in other files"),
    ],
)
def test_a_hostile_file_is_refused(
    file: Path, harm: Callable[[onnx.ModelProto], None], message: str
) -> None:
    proto = onnx.load(file)
    harm(proto)
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError, match=message) as caught:
        open_onnx([file])
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=str(file)):
        open_onnx([file])


def test_other_things_are_refused(tmp_path: Path) -> None:
    for name, content in (("a.onnx", b"no"), ("b.onnx", b"\x00" * 999), ("c.onnx", b"{}")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            open_onnx([tmp_path / name])
    with pytest.raises(CheckpointError, match="gone.onnx: No such file"):
        open_onnx([tmp_path / "gone.onnx"])


def test_a_network_that_cannot_run_is_named(file: Path) -> None:
    proto = onnx.load(file)
    proto.graph.node[1].op_type = "NoSuchOperator"
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError, match=r"age\.onnx: onnxruntime cannot run it"):
        read = read_onnx(file)
        open_session(read.content, file, "cpu")


def test_single_networks_make_a_classifier(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "mask_gender.onnx"
    onnx.save(network("mask_gender"), other)
    rng = np.random.default_rng(1)
    arrays = list(rng.integers(0, 256, (30, 40, 50, 3), dtype=np.uint8) // 2 + 60)
    with Classifier([file, other], provider="cpu") as classifier:
        answers = classifier.predict(arrays)
    assert len(answers) == 30
    with pytest.raises(CheckpointError, match="none answers mask"):
        Classifier(file, provider="cpu")
    with pytest.raises(CheckpointError, match="more than one answers age"):
        Classifier([file, file, other], provider="cpu")


def test_people_are_kept(file: Path) -> None:
    proto = onnx.load(file)
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    seen = frozenset({-(2**63), -1, 0, 2**63 - 1})
    helper.set_model_props(proto, kept | {SEEN_KEY: write_seen(seen)})
    onnx.save(proto, file)
    assert read_onnx(file).trained_on == seen
    assert write_seen(None) is None


# --- providers ---------------------------------------------------------------------------------


@without_cuda
def test_cuda_that_is_not_there_is_an_error_that_says_why(file: Path) -> None:
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(ProviderError, match=f"--provider {provider}: .*--provider cpu"):
            open_session(file.read_bytes(), file, provider)
    session = open_session(file.read_bytes(), file, "auto")
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_why_not_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "is built without it" in why_not("cuda")
    assert why_not("cpu") == ""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: list(sessions.PROVIDERS.values())
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)

    def load(name: str, mode: int = 0) -> None:
        if "cuda" in name and "libcuda.so" not in name:
            raise OSError("libcurand.so.10: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    capi = Path(onnxruntime.__file__).parent / "capi"
    if list(capi.glob("*providers_cuda*")):
        reason = why_not("cuda")
        assert "libcurand.so.10" in reason and "onnxruntime-gpu[cuda,cudnn]" in reason


@without_cuda
def test_a_session_that_fell_back_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "why_not", lambda provider: "")
    with pytest.raises(ProviderError, match="gave CPUExecutionProvider instead"):
        open_session(file.read_bytes(), file, "cuda")


class FullGpu:
    """In place of `onnxruntime.InferenceSession`: CUDA opens so many sessions and no more."""

    real = onnxruntime.InferenceSession

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, content: bytes, options: Any, providers: Any, enable_fallback: int) -> Any:
        assert enable_fallback == 0
        cpu = [sessions.PROVIDERS["cpu"]]
        session = self.real(content, options, providers=cpu)
        if providers[0][0] == cpu[0]:
            return session
        if self.room == 0:
            raise RuntimeError("CUDA failure 2:\nout of memory")
        self.room -= 1
        session.get_providers = lambda: [providers[0][0], *cpu]
        return session


def test_a_gpu_without_room(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "why_not", lambda provider: "")
    monkeypatch.setattr(onnxruntime, "InferenceSession", FullGpu(0))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")  # the user's own stays
    reason = r"cannot run .*age\.onnx: CUDA failure 2: out of memory"
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(ProviderError, match=f"^--provider {provider}: {reason}$"):
            open_session(file.read_bytes(), file, provider)
    with pytest.warns(UserWarning, match=f"{reason}; taking the CPU instead"):
        session = open_session(file.read_bytes(), file, "auto")
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "1"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    with pytest.raises(ProviderError):
        open_session(file.read_bytes(), file, "tensorrt")
    assert os.environ.pop("NVIDIA_TF32_OVERRIDE") == "0"


def test_networks_that_do_not_all_fit_on_a_gpu(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "mask_gender.onnx"
    onnx.save(network("mask_gender"), other)
    monkeypatch.setattr(sessions, "why_not", lambda provider: "")
    monkeypatch.setattr(onnxruntime, "InferenceSession", gpu := FullGpu(1))
    with pytest.warns(UserWarning, match=r"mask_gender\.onnx.*; taking the CPU instead"):
        engine = open_onnx([file, other])
    assert gpu.room == 0
    assert engine.provider == "CPUExecutionProvider"
    assert all(s.get_providers() == [engine.provider] for s in engine._sessions)


class WrongGpu(FullGpu):
    """CUDA opens every session, and `change`s what it answers."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(-1)
        self.change = change

    def __call__(self, content: bytes, options: Any, providers: Any, enable_fallback: int) -> Any:
        session = super().__call__(content, options, providers, enable_fallback)
        if providers[0][0] != sessions.PROVIDERS["cpu"]:
            run = session.run
            session.run = lambda *given: [self.change(answer) for answer in run(*given)]
        return session


def others_of_the_batch(answer: np.ndarray) -> np.ndarray:
    return np.roll(answer, 1, axis=0)


def no_numbers(answer: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(answer))[:, None] == 1, np.nan, answer).astype(answer.dtype)


def no_kernel(answer: np.ndarray) -> np.ndarray:
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize("change", [others_of_the_batch, no_numbers])
def test_a_provider_that_answers_otherwise_is_not_taken(
    networks: list[str],
    change: Callable[[np.ndarray], np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = list(map(Path, networks))
    monkeypatch.setattr(sessions, "why_not", lambda provider: "")
    monkeypatch.setattr(onnxruntime, "InferenceSession", WrongGpu(change))
    reason = r"CUDAExecutionProvider answers otherwise than the CPU.*: probabilities of 3 made"
    with pytest.raises(ProviderError, match=f"^--provider cuda: {reason}.*--provider cpu$"):
        open_onnx(files, "cuda")
    with pytest.warns(UserWarning, match=f"^{reason}.*; taking the CPU instead$"):
        engine = open_onnx(files)
    assert engine.provider == "CPUExecutionProvider"
    monkeypatch.setattr(onnxruntime, "InferenceSession", WrongGpu(no_kernel))
    with pytest.raises(ProviderError, match=r"^--provider cuda: .*no kernel image.*cpu$"):
        open_onnx(files, "cuda")
    with pytest.warns(UserWarning, match="no kernel image.*; taking the CPU instead$"):
        assert open_onnx(files).provider == "CPUExecutionProvider"
    monkeypatch.setattr(onnxruntime, "InferenceSession", WrongGpu(lambda answer: answer + 1e-4))
    assert open_onnx(files, "cuda").provider == "CUDAExecutionProvider"


def test_a_failure_in_the_middle_of_a_job_says_the_way_out(file: Path) -> None:
    session = open_session(file.read_bytes(), file, "cpu")
    wrong = np.zeros((2, 3, 5, 5), dtype=np.float32)  # not the size of the network
    with pytest.raises(ProviderError, match=r"on CPUExecutionProvider failed with 2 pictures: .*"):
        run_session(session, "logits", wrong)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_names_the_extra(
    file: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(name, name=name)
        return plain(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*maskcls\[runtime\]"):
        open_session(read_onnx(file).content, file, "cpu")


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert onnxruntime.__version__ in out
    assert "  cpu       works" in out
    for provider in ("cuda", "tensorrt"):
        assert f"  {provider:10}{why_not(provider) and 'no: ' or 'works'}" in out
    assert "JPEG by" in out
    assert "are one module" not in out


@pytest.mark.parametrize(
    ("missing", "error", "said"),
    [
        (("onnx",), ModuleNotFoundError("No module named 'onnx'", name="onnx"), "onnx is not"),
        (("torch",), OSError("libcublas.so.12: cannot open"), "torch cannot be imported: libcu"),
        (
            ("onnxruntime", "torchvision"),
            ImportError("libstdc++.so.6: version"),
            "onnxruntime cannot be imported: libstdc++",
        ),
    ],
)
def test_doctor_tells_what_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: tuple[str, ...],
    error: Exception,
    said: str,
) -> None:
    """1 where neither checkpoints nor ONNX files can label."""
    real = importlib.import_module

    def load(name: str, *options: Any) -> Any:
        if name in missing:
            raise error
        return real(name, *options)

    monkeypatch.setattr(importlib, "import_module", load)
    assert doctor.main([]) == (1 if len(missing) > 1 else 0)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('libgomp.so.1: cannot open')", r"libgomp\.so\.1"),
        ("import package_that_is_gone", "No module named 'package_that_is_gone'"),
    ],
)
def test_an_onnxruntime_that_is_broken_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, said: str
) -> None:
    (tmp_path / "onnxruntime.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    with pytest.raises(ProviderError, match=f"cannot be imported: {said}"):
        import_onnxruntime()


def test_doctor_sees_two_packages_of_one_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "version", lambda package: "1.31.0")
    assert doctor.main([]) == 0
    assert "onnxruntime and onnxruntime-gpu are one module" in capsys.readouterr().out
