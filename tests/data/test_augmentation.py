"""Augmentations are pure functions of (seed, epoch, index), and do what their numbers say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from maskcls.config import AUGMENTATION_NAMES, MAX_MAGNITUDE
from maskcls.data.augmentation import (
    AddGaussianNoise,
    BaseAugmentation,
    BestAugmentation,
    CustomAugmentation,
    RandAugmentation,
    create_augmentation,
)
from maskcls.data.operations import OPERATIONS
from maskcls.errors import ConfigError
from maskcls.preprocessing import PreprocessSpec

SPEC = PreprocessSpec(height=48, width=32)
RANDOM = [name for name in AUGMENTATION_NAMES if name != "BaseAugmentation"]


def pictures(count: int = 6, size: tuple[int, int] = SPEC.size) -> torch.Tensor:
    """Smooth colours with detail, uint8 (B, H, W, 3)."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (count, 6, 4, 3), dtype=np.uint8)
    large = [
        np.asarray(Image.fromarray(one).resize(size[::-1], Image.Resampling.BICUBIC))
        for one in coarse
    ]
    noisy = np.stack(large).astype(int) + rng.integers(-10, 11, (count, *size, 3))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


def levels(images: torch.Tensor, spec: PreprocessSpec = SPEC) -> torch.Tensor:
    """Back from normalised to 0–255."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (spec.mean, spec.std))
    return images * std + mean


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATION_NAMES)
def test_shape_type_and_finite(name: str) -> None:
    augmentation = create_augmentation(name, SPEC, seed=3)
    assert type(augmentation).__name__ == name
    for pixels in (pictures(), torch.zeros(6, 48, 32, 3, dtype=torch.uint8), pictures() * 0 + 255):
        before = pixels.clone()
        images = augmentation(pixels, range(6), epoch=2)
        assert images.shape == (6, 3, 48, 32)
        assert images.dtype == torch.float32
        assert images.isfinite().all()
        assert torch.equal(pixels, before)  # the cache is not written to


@pytest.mark.parametrize("name", AUGMENTATION_NAMES)
def test_a_picture_is_changed_alike_in_any_batch(name: str) -> None:
    augmentation = create_augmentation(name, SPEC, seed=3)
    pixels, indices = pictures(), [11, 5, 900, 0, 7, 8]
    together = augmentation(pixels, indices, epoch=4)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = augmentation(pixels[order], [indices[i] for i in order], epoch=4)
    for position, index in enumerate(order):
        alone = augmentation(pixels[index : index + 1], indices[index : index + 1], epoch=4)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-4)
        torch.testing.assert_close(shuffled[position], together[index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", RANDOM)
def test_seed_epoch_and_index_each_change_the_picture(name: str) -> None:
    pixels = pictures(1)

    def one(seed: int, epoch: int, index: int) -> torch.Tensor:
        return create_augmentation(name, SPEC, seed)(pixels, [index], epoch)

    first = one(1, 2, 3)
    assert torch.equal(first, one(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2), (2, 1, 3)):
        assert (one(*other) - first).abs().mean() > 1e-3, other


@pytest.mark.parametrize("name", RANDOM)
def test_the_global_generators_play_no_part(name: str) -> None:
    augmentation = create_augmentation(name, SPEC, seed=3)
    torch.manual_seed(0)
    np.random.seed(0)
    state = torch.get_rng_state()
    first = augmentation(pictures(), range(6))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(augmentation(pictures(), range(6)), first)


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'BestAugmentation'"):
        create_augmentation("BestAugmentations", SPEC)


# --- base --------------------------------------------------------------------------------------


def test_base_equals_the_numpy_form() -> None:
    pixels = pictures()
    ours = BaseAugmentation(SPEC)(pixels, range(6))
    np.testing.assert_allclose(ours.numpy(), SPEC.normalise(pixels.numpy()), atol=2e-6)


@pytest.mark.parametrize("size", [(512, 384), (100, 90), (40, 20)])
@pytest.mark.parametrize("crop", [(1.0, 1.0), (0.6, 0.7)])
def test_base_resizes_as_pillow_does(size: tuple[int, int], crop: tuple[float, float]) -> None:
    spec = PreprocessSpec(48, 32, crop)
    [pixels] = pictures(1, size)
    image = Image.fromarray(pixels.numpy())
    expected = torch.from_numpy(spec.resize(image).copy()).permute(2, 0, 1)
    ours = levels(BaseAugmentation(spec)(pixels[None]), spec)[0]
    assert (ours - expected).abs().max() <= 1.01
    of_picture = levels(BaseAugmentation(spec)(image), spec)[0]
    torch.testing.assert_close(of_picture, expected.float(), rtol=0, atol=1e-3)


# --- noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.1), (0.5, 0.3)])
def test_noise_has_the_moments_it_is_told(mean: float, std: float) -> None:
    pixels = pictures(40)
    noisy = AddGaussianNoise(SPEC, mean=mean, std=std)(pixels, range(40))
    noise = (noisy - BaseAugmentation(SPEC)(pixels, range(40))).numpy()
    assert noise.std() == pytest.approx(std, rel=0.02)
    assert noise.mean() == pytest.approx(mean, abs=0.005)
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


def test_default_noise_is_weak() -> None:
    pixels = pictures(20)
    noise = AddGaussianNoise(SPEC)(pixels, range(20)) - BaseAugmentation(SPEC)(pixels, range(20))
    assert noise.std().item() == pytest.approx(0.1, rel=0.03)


# --- the original's ----------------------------------------------------------------------------


class Quiet(CustomAugmentation):
    """Without the noise, to see the jitter alone."""

    def after_normalise(self, images: torch.Tensor, rngs: object) -> torch.Tensor:
        return images


def test_jitter_keeps_greys_grey() -> None:
    ramp = torch.linspace(40, 200, 48 * 32).round().to(torch.uint8).view(1, 48, 32, 1)
    pixels = ramp.expand(8, 48, 32, 3)
    images = levels(Quiet(SPEC)(pixels, range(8)))
    assert (images.max(dim=1).values - images.min(dim=1).values).max() < 0.3
    assert (images - pixels.permute(0, 3, 1, 2)).abs().mean() > 1  # its light does change


def test_jitter_turns_colours_both_ways_and_little() -> None:
    pixels = torch.tensor([150, 100, 100], dtype=torch.uint8).expand(200, 48, 32, 3)
    means = levels(Quiet(SPEC)(pixels, range(200))).mean(dim=(2, 3))
    turn = means[:, 1] - means[:, 2]  # green over blue: 0 for this red, the sign is the direction
    assert (turn > 1).any() and (turn < -1).any()
    assert turn.abs().max() < 60
    assert (means[:, 0] > means[:, 1]).all() and (means[:, 0] > means[:, 2]).all()


def test_custom_without_ranges_is_base() -> None:
    class Still(Quiet):
        jitter = 0.0

    pixels = pictures()
    torch.testing.assert_close(
        Still(SPEC)(pixels, range(6)), BaseAugmentation(SPEC)(pixels, range(6)), atol=1e-4, rtol=0
    )


def test_custom_by_itself_crops_as_the_original_does() -> None:
    pixels = torch.zeros(1, 512, 384, 3, dtype=torch.uint8)
    pixels[:, 96:416, 64:320] = 255  # the centre, 320 high and 256 wide
    images = levels(CustomAugmentation()(pixels))
    assert images.shape[2:] == (128, 96)
    assert images.min() > 120  # nothing of the black border is left, only noise and less light


# --- best --------------------------------------------------------------------------------------


class Still(BestAugmentation):
    degrees = scale = shift = light = tint = erase_share = 0.0


def test_best_without_ranges_is_base_up_to_a_flip() -> None:
    pixels = pictures(32)
    images = Still(SPEC, seed=1)(pixels, range(32))
    plain = BaseAugmentation(SPEC)(pixels, range(32))
    flipped = 0
    for image, expected in zip(images, plain, strict=True):
        same = torch.allclose(image, expected, atol=2e-3)
        mirrored = torch.allclose(image, expected.flip(2), atol=2e-3)
        assert same != mirrored
        flipped += mirrored
    assert 6 <= flipped <= 26


def test_erasing_greys_a_quarter_of_the_pictures() -> None:
    class Erasing(Still):
        erase_share = BestAugmentation.erase_share

    count = 800
    pixels = torch.full((count, 48, 32, 3), 255, dtype=torch.uint8)
    grey = Erasing(SPEC)(pixels, range(count)).abs().max(dim=1).values < 1e-4  # 0 is the mean
    chosen = grey.any(dim=(1, 2))
    assert chosen.float().mean().item() == pytest.approx(0.25, abs=0.05)
    for one in grey[chosen]:
        rows, columns = one.any(dim=1).nonzero().ravel(), one.any(dim=0).nonzero().ravel()
        height, width = (int(v[-1] - v[0]) + 1 for v in (rows, columns))
        assert int(one.sum()) == height * width  # one rectangle
        assert 0.1 * 48 - 2 <= height <= 0.35 * 48 + 2
        assert 0.1 * 32 - 2 <= width <= 0.35 * 32 + 2
    everywhere = grey[chosen].float().mean(dim=0)
    assert (everywhere > 0).float().mean() > 0.8  # not always the same place


def test_rotation_keeps_angles_in_pixels() -> None:
    class Turning(Still):
        degrees = 15.0

        def _move(self, images, flip, uniform):  # type: ignore[no-untyped-def]
            return super()._move(images, torch.ones_like(flip), uniform)

    # A cross of two lines at right angles, in a picture that is not square.
    spec = PreprocessSpec(128, 64)
    pixels = torch.zeros(8, 128, 64, 3, dtype=torch.uint8)
    pixels[:, 63:65, 8:56] = 255
    pixels[:, 40:88, 31:33] = 255
    angles = []
    for image in levels(Turning(spec)(pixels, range(8)), spec)[:, 0]:
        ends = []
        for line in ("across", "down"):
            y, x = torch.meshgrid(torch.arange(128) - 63.5, torch.arange(64) - 31.5, indexing="ij")
            part = image * ((x > 8) if line == "across" else (y > 8)) * (image > 60)
            part = part * ((x > y.abs()) if line == "across" else (y > x.abs()))
            ends.append(((part * x).sum() / part.sum(), (part * y).sum() / part.sum()))
        across, down = (np.degrees(np.arctan2(float(y), float(x))) for x, y in ends)
        assert down - across == pytest.approx(90, abs=1.5)
        angles.append(across)
    assert max(angles) > 4 and min(angles) < -4
    assert max(map(abs, angles)) < 16


def test_scale_and_shift_stay_in_their_ranges() -> None:
    class Moving(Still):
        scale, shift = 0.15, 0.1

    pixels = torch.zeros(200, 48, 48, 3, dtype=torch.uint8)
    pixels[:, 16:32, 16:32] = 255
    spec = PreprocessSpec(48, 48)
    images = levels(Moving(spec)(pixels, range(200)), spec)[:, 0] / 255
    side = images.sum(dim=(1, 2)).sqrt() / 16
    assert 1 / 1.16 < side.min() < 0.9 and 1.1 < side.max() < 1.16
    grid = torch.arange(48) - 23.5
    centre = (images.sum(dim=1) * grid).sum(dim=1) / images.sum(dim=(1, 2))
    assert centre.abs().max() < 0.1 * 24 * 1.16
    assert centre.min() < -1.5 and centre.max() > 1.5


# --- erasing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATION_NAMES)
def test_any_augmentation_may_erase(name: str) -> None:
    pixels = pictures(40)

    def erased(share: float | None) -> torch.Tensor:
        images = create_augmentation(name, SPEC, 1, erasing=share)(pixels, range(40))
        plain = create_augmentation(name, SPEC, 1, erasing=0.0)(pixels, range(40))
        return (images != plain).any(dim=1)

    own = {"BestAugmentation": 0.25}.get(name, 0.0)
    if name != "CustomAugmentation" and name != "AddGaussianNoise":  # their noise comes afterwards
        assert erased(None).any(dim=(1, 2)).float().mean().item() == pytest.approx(own, abs=0.15)
        assert 0.01 < erased(1.0).float().mean() < 0.35**2 + 0.05
        some, more = (erased(share).any(dim=(1, 2)) for share in (0.3, 0.6))
        assert 0 < some.sum() < more.sum() and (more | ~some).all()
    assert erased(1.0).any(dim=(1, 2)).all()


def test_best_draws_what_it_always_drew() -> None:
    """Its fifteen numbers of a picture are the first of its generator: ten, then five to erase."""
    pixels, own = pictures(32), BestAugmentation(SPEC, seed=3)
    numbers = [np.random.default_rng((3, 2, i)).random(15, dtype=np.float32) for i in range(32)]
    rectangle = torch.from_numpy(np.stack(numbers)[:, 10:] * 2 - 1)
    plain = create_augmentation("BestAugmentation", SPEC, 3, erasing=0.0)(pixels, range(32), 2)
    expected = own._erase(levels(plain), (rectangle + 1) / 2)
    torch.testing.assert_close(levels(own(pixels, range(32), 2)), expected, rtol=0, atol=1e-3)


# --- RandAugment -------------------------------------------------------------------------------

LEVEL = 0.3


def one_by_one(name: str, images: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """The same by torchvision, for uint8 (B, 3, H, W)."""
    done = []
    for image, sign in zip(images, signs.tolist(), strict=True):
        factor = 1 + 0.9 * LEVEL * sign
        height, width = image.shape[1:]
        affine = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
        degrees = np.degrees(np.arctan(0.3 * LEVEL * sign))
        # torchvision tells where pixels go to, not where they come from.
        move = {
            "rotate": {"angle": 30 * LEVEL * -sign},
            "shear_x": {"shear": [degrees, 0.0]},
            "shear_y": {"shear": [0.0, degrees]},
            "translate_x": {"translate": [-150 / 331 * LEVEL * sign * width, 0]},
            "translate_y": {"translate": [0, -150 / 331 * LEVEL * sign * height]},
        }
        if name in move:
            bilinear = TF.InterpolationMode.BILINEAR
            done.append(TF.affine(image, **(affine | move[name]), interpolation=bilinear))
            continue
        done.append(
            {
                "identity": lambda x: x,
                "autocontrast": TF.autocontrast,
                "equalize": TF.equalize,
                "posterize": lambda x: TF.posterize(x, 7),
                "solarize": lambda x: TF.solarize(x, 255 * (1 - LEVEL)),
                "colour": lambda x, f=factor: TF.adjust_saturation(x, f),
                "contrast": lambda x, f=factor: TF.adjust_contrast(x, f),
                "brightness": lambda x, f=factor: TF.adjust_brightness(x, f),
                "sharpness": lambda x, f=factor: TF.adjust_sharpness(x, f),
            }[name](image)
        )
    return torch.stack(done)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_do_what_torchvisions_do(name: str) -> None:
    pixels = pictures(4, (64, 48)).permute(0, 3, 1, 2)
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0])
    ours = OPERATIONS[name](pixels.float(), LEVEL, signs)
    difference = (ours - one_by_one(name, pixels, signs).float()).abs()
    if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        difference = difference[:, :, 16:-16, 12:-12]  # edges are mirrored, not black
    assert difference.mean() < 1.0
    assert difference.max() <= 2.01
    if name != "identity":
        assert (ours - pixels).abs().mean() > 0.5


@pytest.mark.parametrize("name", OPERATIONS)
def test_level_0_does_nothing_and_the_rest_more_and_more(name: str) -> None:
    images = pictures(6).permute(0, 3, 1, 2).float()
    signs = torch.tensor([1.0, -1.0] * 3)
    changes = [
        (OPERATIONS[name](images, level, signs) - images).abs().mean().item()
        for level in (0.0, 0.3, 0.6)
    ]
    if name in ("autocontrast", "equalize"):  # have no level
        assert len(set(changes)) == 1 and changes[0] > 1
        return
    assert changes[0] < 0.02
    assert name == "identity" or changes[0] < changes[1] < changes[2]


def test_pictures_get_the_operations_of_the_list_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(OPERATIONS, 0)

    def counting(name: str) -> Callable[..., torch.Tensor]:
        def operation(images: torch.Tensor, level: float, sign: torch.Tensor) -> torch.Tensor:
            assert level == 12 / MAX_MAGNITUDE
            assert set(sign.tolist()) <= {1.0, -1.0}
            counts[name] += len(images)
            return images

        return operation

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, counting(name))
    pixels = pictures(1).expand(700, -1, -1, -1)
    augmentation = create_augmentation("RandAugmentation", SPEC, operations=3, magnitude=12.0)
    images = augmentation(pixels, range(700))
    assert sum(counts.values()) == 3 * 700
    assert min(counts.values()) > 0.7 * 150 and max(counts.values()) < 1.3 * 150
    plain = BaseAugmentation(SPEC)(pixels[:1])[0]
    flipped = sum(torch.equal(image, plain.flip(2)) for image in images)
    assert flipped + sum(torch.equal(image, plain) for image in images) == 700
    assert 0.4 < flipped / 700 < 0.6


def test_a_magnitude_of_0_leaves_what_has_a_strength_as_it_is() -> None:
    pixels = pictures(64)
    images = RandAugmentation(SPEC, operations=1, magnitude=0.0)(pixels, range(64))
    plain = BaseAugmentation(SPEC)(pixels)
    same = sum(
        torch.allclose(image, one, atol=2e-3) or torch.allclose(image, one.flip(2), atol=2e-3)
        for image, one in zip(images, plain, strict=True)
    )
    assert 64 * 9 / 14 < same < 64  # twelve operations of fourteen
