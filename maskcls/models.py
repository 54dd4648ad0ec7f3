"""The networks by name. All parameters train; none is frozen.

Every network takes float32 (N, 3, H, W) and answers logits (N, num_classes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import get_model_params
from torch import Tensor, nn
from torchvision.models import vgg
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from maskcls.baseline import BaseModel
from maskcls.checkpoints import open_checkpoint, read_checkpoint
from maskcls.config import MODEL_NAMES
from maskcls.convolutions import quicken
from maskcls.errors import CheckpointError, ConfigError, WeightsError, unknown
from maskcls.files import file_digest
from maskcls.manifest import ENSEMBLE, Manifest, ensemble_members

_CLASSIFIERS = ("fc", "_fc", "classifier.6")
"""Where the networks keep their last linear layer."""
SCRATCH_MOMENTUM = 0.1
"""Of running batch statistics, at least, where they begin at nothing: PyTorch's default."""


class _EfficientNet(EfficientNet):  # type: ignore[misc]  # the package has no types
    """efficientnet_pytorch's network, padded for the input size it is told.

    That package fixes the padding of its convolutions when it is built: the same weights built for
    another size answer otherwise. So the size is a constructor argument, and in the manifest.

    What it computes is the package's, in fewer passes over memory: swish is PyTorch's own SiLU, and
    padding that is the same on both sides is left to the convolution.
    """

    version: str

    def __init__(self, num_classes: int, image_size: tuple[int, int]) -> None:
        blocks, parameters = get_model_params(
            self.version, {"num_classes": num_classes, "image_size": tuple(image_size)}
        )
        super().__init__(blocks, parameters)
        for module in self.modules():
            if hasattr(module, "_swish"):
                module._swish = nn.SiLU()
            if isinstance(getattr(module, "static_padding", None), nn.ZeroPad2d):
                left, right, top, bottom = module.static_padding.padding
                if (left, top) == (right, bottom):
                    module.padding, module.static_padding = (top, left), nn.Identity()


class EfficientNetB3(_EfficientNet):
    version = "efficientnet-b3"


class EfficientNetB4(_EfficientNet):
    version = "efficientnet-b4"


class EfficientNetB5(_EfficientNet):
    version = "efficientnet-b5"


class EfficientNetB3_init(EfficientNetB3):
    """B3 whose classifier starts anew: Xavier-uniform weights, zero bias, whatever the backbone
    starts from."""

    def __init__(self, num_classes: int, image_size: tuple[int, int]) -> None:
        super().__init__(num_classes, image_size)
        nn.init.xavier_uniform_(self._fc.weight)
        nn.init.zeros_(self._fc.bias)


class ResNet18(ResNet):  # type: ignore[misc]
    def __init__(self, num_classes: int) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes)


class ResNet34(ResNet):  # type: ignore[misc]
    def __init__(self, num_classes: int) -> None:
        super().__init__(BasicBlock, [3, 4, 6, 3], num_classes)


class ResNext50(ResNet):  # type: ignore[misc]
    def __init__(self, num_classes: int) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes, groups=32, width_per_group=4)


class ResNext101(ResNet):  # type: ignore[misc]
    def __init__(self, num_classes: int) -> None:
        super().__init__(Bottleneck, [3, 4, 23, 3], num_classes, groups=32, width_per_group=8)


class Vgg19(vgg.VGG):  # type: ignore[misc]
    def __init__(self, num_classes: int) -> None:
        super().__init__(vgg.make_layers(vgg.cfgs["E"]), num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "base": BaseModel,
    "efficientnet_b3": EfficientNetB3,
    "efficientnet_b3_init": EfficientNetB3_init,
    "efficientnet_b4": EfficientNetB4,
    "efficientnet_b5": EfficientNetB5,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnext50": ResNext50,
    "resnext101": ResNext101,
    "vgg19": Vgg19,
}


class SummedLinear(nn.Linear):
    """A classifier that learns more than it answers: finer steps, and other things beside them.

    In training it gives all logits, (N, sum(steps) + auxiliary). In evaluation it gives those of
    the classes, (N, len(steps)): class i is `steps[i]` neighbouring steps, and its probability is
    their sum; the `auxiliary` logits at the end are left out. Learning the distribution over ages
    rather than the group is what Gao et al. 2017 (arXiv:1611.01731) call deep label distribution
    learning; auxiliary tasks are those of Caruana 1997 (doi:10.1023/A:1007379606734).
    """

    def __init__(self, in_features: int, steps: Sequence[int], auxiliary: int = 0) -> None:
        if not steps or not all(isinstance(count, int) and count > 0 for count in steps):
            raise ValueError(f"steps {steps!r}: needs a whole number above 0 per class")
        if not isinstance(auxiliary, int) or auxiliary < 0:
            raise ValueError(f"auxiliary {auxiliary!r}: needs a whole number, 0 or more")
        super().__init__(in_features, sum(steps) + auxiliary)
        self.steps = tuple(steps)

    def forward(self, features: Tensor) -> Tensor:
        logits = super().forward(features)
        if self.training:
            return logits
        answers = logits[:, : sum(self.steps)].float()
        parts = torch.split(answers, list(self.steps), dim=1)
        return torch.stack([part.logsumexp(dim=1) for part in parts], dim=1)


def answer_in_steps(model: nn.Module) -> tuple[int, ...] | None:
    """Makes a network that learnt finer steps than its classes answer those: (N, sum(steps)).

    Returns how many of them make each class; None for a network that learnt none, which answers as
    it did. `model`: a single one, not an ensemble, whose members may have other steps each.
    """
    heads = [module for module in model.modules() if isinstance(module, SummedLinear)]
    if len(heads) != 1 or sum(heads[0].steps) == len(heads[0].steps):
        return None
    steps = heads[0].steps
    heads[0].steps = (1,) * sum(steps)
    return steps


def model_args(
    name: str,
    image_size: tuple[int, int],
    steps: Sequence[int] | None = None,
    auxiliary: int = 0,
) -> dict[str, Any]:
    """What a network is made from besides its name and class count; goes into the manifest.

    Raises:
        ConfigError: no such network.
    """
    if name not in MODELS:
        raise ConfigError(unknown("model", name, MODEL_NAMES))
    size = {"image_size": list(image_size)} if name.startswith("efficientnet") else {}
    learnt = {"steps": list(steps)} if steps else {}
    return size | learnt | ({"auxiliary": auxiliary} if auxiliary else {})


def create_model(
    name: str,
    num_classes: int,
    image_size: tuple[int, int],
    steps: Sequence[int] | None = None,
    auxiliary: int = 0,
) -> nn.Module:
    """A network with random weights. `image_size`: (height, width) in pixels. `steps`: how many
    steps each class is learnt in, by default one; `auxiliary`: how many logits are learnt beside
    them; see `SummedLinear`.

    Raises:
        ConfigError: no such network.
    """
    return _build(name, num_classes, model_args(name, image_size, steps, auxiliary))


def _build(name: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """
    Raises:
        TypeError, ValueError: arguments that the network does not take.
    """
    arguments = dict(arguments)
    steps, auxiliary = arguments.pop("steps", None), arguments.pop("auxiliary", 0)
    model = MODELS[name](num_classes, **arguments)
    if steps is not None or auxiliary:
        steps = steps or [1] * num_classes
        if len(steps) != num_classes:
            raise ValueError(f"steps {steps!r}: needs one number for each of {num_classes} classes")
        [place] = [key for key, _ in model.named_modules() if key in _CLASSIFIERS]
        features = model.get_submodule(place).in_features
        model.set_submodule(place, SummedLinear(features, steps, auxiliary))  # type: ignore[arg-type]
    quicken(model)
    return model


def model_from_manifest(manifest: Manifest) -> nn.Module:
    """The network that a checkpoint's manifest describes, with random weights.

    Raises:
        CheckpointError: no such network, or arguments that it does not take.
    """
    if manifest.model == ENSEMBLE:
        return Ensemble(
            [Answer(model_from_manifest(member), member) for member in ensemble_members(manifest)]
        )
    if manifest.model not in MODEL_NAMES:
        raise CheckpointError(unknown("model", str(manifest.model), MODEL_NAMES))
    try:
        return _build(manifest.model, manifest.get_task().num_classes, manifest.model_args)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"manifest: {manifest.model} cannot be built: {error}") from error


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network out of its checkpoint."""

    path: Path  # as it was asked for: beside it lie the other files of its run
    source: Path  # the file that was read: the previous save, where `path` is damaged
    sha256: str  # of `source`
    manifest: Manifest
    model: nn.Module  # in evaluation mode, on the CPU
    seen: frozenset[int] | None  # fingerprints of whom it was trained on; None: it does not say


def open_trained(path: Path) -> Trained:
    """The network in a checkpoint, and all that is to be known of it.

    Raises:
        CheckpointError: as `load_model`.
    """
    content, source = open_checkpoint(path)
    model, manifest = restore_model(content, source)
    seen = frozenset(content["seen"].tolist()) if "seen" in content else None
    return Trained(path, source, file_digest(source), manifest, model, seen)


def load_model(path: Path, device: str = "cpu") -> tuple[nn.Module, Manifest]:
    """A trained network in evaluation mode, and its manifest, from a checkpoint or a run folder.

    A run folder stands for its best checkpoint. A checkpoint of a run with averaged weights (EMA)
    gives those. A damaged file gives way to the previous one, with a warning.

    Raises:
        CheckpointError: none that can be read, or one that does not fit its own manifest.
    """
    file = path / "best.pt" if path.is_dir() else path
    model, manifest = restore_model(read_checkpoint(file), file)
    return model.to(device), manifest


def restore_model(
    content: Mapping[str, Any], source: Path | str = "checkpoint"
) -> tuple[nn.Module, Manifest]:
    """The network in a checkpoint's content, in evaluation mode on the CPU, and its manifest.

    `source`: where the content is from, for messages.

    Raises:
        CheckpointError: no manifest, or weights that do not fit it.
    """
    try:
        manifest = Manifest.from_json(content["manifest"])
        model = model_from_manifest(manifest)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    try:
        model.load_state_dict(content.get("ema") or content["model"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]  # torch lists every tensor, a line each
        raise CheckpointError(
            f"{source}: the weights do not fit {manifest.model}: {reason}"
        ) from error
    return model.eval(), manifest


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str, *, keep_classifier: bool = True
) -> list[str]:
    """Copies a state dict into a network, fitting the classifier to the task.

    A classifier of another class count, or any without `keep_classifier`, leaves the network's own
    random one in place; everything else must fit.

    Returns:
        The names of the classifier's tensors that were left as they are.

    Raises:
        WeightsError: tensors missing, left over, or of other shapes; names the first few.
    """
    own = model.state_dict()
    fitted = {
        key: value
        for key, value in state.items()
        if not _is_classifier(key)
        or (keep_classifier and key in own and value.shape == own[key].shape)
    }
    missing = sorted(
        key
        for key in own
        if key not in fitted
        and not _is_classifier(key)
        # Older files, some of torchvision's too, lack this count, which no momentum of ours needs.
        and not key.endswith(".num_batches_tracked")
    )
    extra = sorted(key for key in fitted if key not in own)
    shaped = sorted(key for key in fitted if key in own and fitted[key].shape != own[key].shape)
    for what, keys in (("missing", missing), ("unknown", extra), ("of another shape", shaped)):
        if keys:
            raise WeightsError(
                f"{source}: weights of another network than {type(model).__name__}: "
                f"{len(keys)} tensors {what}, first: {', '.join(keys[:3])}"
            )
    model.load_state_dict(fitted, strict=False)
    return sorted(key for key in own if key not in fitted and _is_classifier(key))


def _is_classifier(key: str) -> bool:
    return key.rpartition(".")[0] in _CLASSIFIERS


def predict_logits(model: nn.Module, images: Tensor, tta: str) -> Tensor:
    """What a trained network answers, as it learnt to: float32 (N, C). See `Answer` for labelling.

    `tta`: `none`, or `flip`, the average of the probabilities for a picture and its mirror image,
    given as its logarithm. images: normalised (N, 3, H, W).
    """
    logits: Tensor = model(images).float()
    if tta == "none":
        return logits
    mirrored = model(images.flip(3)).float()
    both = torch.stack([logits.log_softmax(dim=1), mirrored.log_softmax(dim=1)])
    return both.logsumexp(dim=0) - math.log(2)


class Answer(nn.Module):
    """A trained network as it labels: what `predict_logits` gives, calibrated as the manifest says.

    PyTorch and the ONNX files both answer this. images: normalised (N, 3, H, W) → logits float32
    (N, C).
    """

    bias: Tensor

    def __init__(self, model: nn.Module, manifest: Manifest) -> None:
        super().__init__()
        self.model = model
        self.tta = manifest.tta
        self.calibrated = manifest.calibration is not None
        if manifest.calibration is not None:
            self.temperature = manifest.calibration.temperature
            self.register_buffer("bias", torch.tensor(manifest.calibration.bias))

    def forward(self, images: Tensor) -> Tensor:
        logits = predict_logits(self.model, images, self.tta)
        return logits / self.temperature + self.bias if self.calibrated else logits


class Ensemble(nn.Module):
    """Networks of one task that answer together: the mean of their probabilities, as its logarithm.

    Each member answers as it labels alone, averaged over mirror images and calibrated as its own
    manifest says. images: normalised (N, 3, H, W) → logits float32 (N, C).
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        answers = torch.stack([member(images).log_softmax(dim=1) for member in self.members])
        return answers.logsumexp(dim=0) - math.log(len(self.members))


def count_parameters(model: nn.Module) -> int:
    """Trainable values."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def shorten_memory(model: nn.Module) -> None:
    """Batch statistics of a network that starts at random, in place: a momentum of 0.1 or more.

    efficientnet_pytorch's is 0.01. Its variances are tiny beside the 1 that running ones begin at,
    of which 4 % are left after 315 steps: the network learns, and in evaluation it answers its
    bias until a thousand steps are done.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, SCRATCH_MOMENTUM)


def channels_last(model: nn.Module) -> nn.Module:
    """The memory layout in which convolutions are fastest; the answers stay the same."""
    return model.to(memory_format=torch.channels_last)
