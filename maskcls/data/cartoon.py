"""The faces of the built-in sample: schematic cartoons with a drawn sign for each label.

Long hair or heavy brows, grey hair and wrinkles, where the mask sits: made to be told apart by a
small network in a minute. Nothing about real people follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from maskcls.labels import MASK_OF_STEM, MULTI, AgeLabels, GenderLabels, MaskLabels

SIZE = (384, 512)  # pixels, width × height, as in the competition
# Last word of a generator's key. Never 0: numpy takes (7, 1) and (7, 1, 0) for the same key.
_LOOK, _FIRST_PICTURE = 2, 3

Colour = tuple[int, int, int]
_SKINS: dict[str, Colour] = {
    "Asian": (240, 206, 168),
    "White": (246, 212, 190),
    "Black": (122, 80, 56),
    "Indian": (182, 130, 92),
    "Others": (214, 166, 126),
}
_HAIRS: dict[AgeLabels, tuple[Colour, ...]] = {
    AgeLabels.YOUNG: (
        (24, 20, 22), (40, 26, 20), (54, 30, 22), (150, 52, 18), (140, 22, 48), (64, 50, 150),
    ),
    AgeLabels.MIDDLE: ((140, 112, 86), (152, 122, 92), (130, 108, 90), (162, 134, 106)),
    AgeLabels.OLD: ((236, 236, 238), (214, 216, 220), (192, 196, 202)),
}  # fmt: skip
_GREY: Colour = (178, 176, 174)
_GLASSES_SHARE = {AgeLabels.YOUNG: 0.08, AgeLabels.MIDDLE: 0.5, AgeLabels.OLD: 0.35}
_MASKS: tuple[Colour, ...] = (
    (140, 196, 232), (246, 248, 250), (44, 46, 52), (248, 186, 204), (150, 214, 178), (70, 96, 160),
)  # fmt: skip
_EYES: tuple[Colour, ...] = ((70, 44, 28), (40, 30, 26), (70, 110, 150), (80, 120, 70))
_INK: Colour = (40, 30, 34)
_WHITE: Colour = (252, 252, 250)
RACES = tuple(_SKINS)


@dataclass(frozen=True)
class SamplePerson:
    """A drawn person: an id and the labels."""

    number: int
    gender: GenderLabels
    race: str
    age: int  # years

    @property
    def age_group(self) -> AgeLabels:
        return AgeLabels.from_number(self.age)

    @property
    def row(self) -> tuple[str, str, str, str, str]:
        """The row of `train.csv`, in the order of `PROFILE_COLUMNS`."""
        cells = (f"{self.number:06d}", self.gender.name.lower(), self.race, str(self.age))
        return (*cells, "_".join(cells))

    def answer(self, mask: MaskLabels) -> int:
        """The 18-class label of a picture of this person."""
        return int(MULTI.encode(mask=mask, gender=self.gender, age=self.age_group))


@dataclass(frozen=True)
class _Look:
    """What stays the same in all pictures of a person. Lengths are in head units, see `_Pen`."""

    skin: Colour
    hair: Colour
    strands: Colour  # darker lines in the hair, and its sides; grey in the middle group
    eye: Colour
    shirt: Colour
    lips: Colour
    width: float  # half the width of the head
    jaw: float  # exponent of the lower outline: the smaller, the squarer
    hairline: float  # y of the hairline in the middle of the forehead
    hair_end: float  # y down to which the hair falls beside the face; 0: short hair
    bald: bool
    curly: bool
    glasses: bool
    beard: float  # 0 none, 1 full, between: stubble
    lines: int  # wrinkles on the forehead


def _look(person: SamplePerson, seed: int) -> _Look:
    rng = np.random.default_rng((seed, person.number, _LOOK))
    group, female = person.age_group, person.gender is GenderLabels.FEMALE
    old = group is AgeLabels.OLD
    skin = _vary(rng, _SKINS[person.race], 12)
    hair = _vary(rng, _HAIRS[group][rng.integers(len(_HAIRS[group]))], 8)
    bald = bool(not female and old and rng.random() < 0.5)
    return _Look(
        skin=skin,
        hair=hair,
        strands=_GREY if group is AgeLabels.MIDDLE else _mix(hair, _INK, 0.2),
        eye=_EYES[rng.integers(len(_EYES))],
        shirt=_any_colour(rng),
        lips=_vary(rng, (200, 52, 76), 24) if female else _mix(skin, (150, 60, 60), 0.45),
        width=rng.uniform(0.76, 0.84) if female else rng.uniform(0.8, 0.9),
        jaw=rng.uniform(0.95, 1.1) if female else rng.uniform(0.68, 0.85),
        hairline=(-0.66 if old else -0.52) + rng.uniform(-0.06, 0.06),
        hair_end=float(rng.choice([0.95, 1.35, 1.75])) if female else 0.0,
        bald=bald,
        curly=bool(rng.random() < 0.3),
        glasses=bool(rng.random() < _GLASSES_SHARE[group]),
        beard=0.0 if female else float(rng.choice([0.0, 0.25, 0.4, 1.0])),
        lines=(0, 1, 3)[group],
    )


_Points = np.ndarray | Sequence[tuple[float, float]]


class _Pen:
    """Draws in head units: the origin is the middle of the head, y points down, and the chin is at
    y = 1.05. The whole head is turned, scaled and moved at once."""

    _T = np.linspace(0, 2 * np.pi, 40)
    _CIRCLE = np.stack([np.cos(_T), np.sin(_T)], axis=1)

    def __init__(
        self, image: Image.Image, scale: float, angle: float, centre: tuple[float, float]
    ) -> None:
        self._image, self._draw = image, ImageDraw.Draw(image)
        self._scale, self._angle, self._centre = scale, angle, centre
        cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
        self._matrix = np.array([[cos, sin], [-sin, cos]])

    def moved(self, x: float, y: float) -> _Pen:
        """The same pen with its origin at (x, y)."""
        centre = self._pixels([(x, y)])[0]
        return _Pen(self._image, self._scale, self._angle, centre)

    def shape(self, points: _Points, colour: Colour) -> None:
        self._draw.polygon(self._pixels(points), fill=colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self.shape(self._CIRCLE * (rx, ry) + (x, y), colour)

    def line(self, points: _Points, width: float, colour: Colour) -> None:
        pixels = max(1, round(width * self._scale))
        self._draw.line(self._pixels(points), fill=colour, width=pixels, joint="curve")

    def arc(
        self, x: float, y: float, half: float, sag: float, width: float, colour: Colour
    ) -> None:
        """A line from (x - half, y) to (x + half, y) whose middle hangs `sag` lower."""
        t = np.linspace(-1, 1, 9)
        self.line(np.stack([x + half * t, y + sag * (1 - t**2)], axis=1), width, colour)

    def _pixels(self, points: _Points) -> list[tuple[float, float]]:
        return [(x, y) for x, y in (np.asarray(points) @ self._matrix + self._centre).tolist()]


def draw_picture(person: SamplePerson, stem: str, seed: int) -> Image.Image:
    """One picture of a person, RGB, `SIZE` pixels; `stem` (`mask1` … `normal`) says how the mask is
    worn. Pose, light, background, mouth and mask differ from picture to picture."""
    look = _look(person, seed)
    picture = list(MASK_OF_STEM).index(stem)
    rng = np.random.default_rng((seed, person.number, _FIRST_PICTURE + picture))
    blotches = rng.integers(-24, 25, (4, 3, 3)) + _mix(_any_colour(rng), _WHITE, 0.4)
    image = Image.fromarray(blotches.clip(0, 255).astype(np.uint8)).resize(
        SIZE, Image.Resampling.BILINEAR
    )
    centre = (SIZE[0] / 2 + rng.uniform(-15, 15), SIZE[1] * 0.48 + rng.uniform(-15, 15))
    pen = _Pen(image, rng.uniform(122, 146), rng.uniform(-0.09, 0.09), centre)
    turned = pen.moved(rng.uniform(-0.09, 0.09), rng.uniform(-0.04, 0.04))  # looks a little aside

    _draw_body(pen, look)
    _draw_head(pen, look)
    _draw_eyes(turned, look, female=person.gender is GenderLabels.FEMALE)
    _draw_mouth(turned, look, smile=rng.uniform(0.06, 0.16))
    _draw_lines(turned, look)
    _draw_hair(pen, look, part=rng.uniform(-0.3, 0.3))
    _draw_mask(pen, look, MASK_OF_STEM[stem], rng)
    if look.glasses:
        _draw_glasses(turned)

    light = rng.uniform(0.76, 1.0) * rng.uniform(0.93, 1.0, 3)  # brightness, and a slight tint
    return image.point([round(level * gain) for gain in light.tolist() for level in range(256)])


def _draw_body(pen: _Pen, look: _Look) -> None:
    pen.oval(0, 2.55, 1.6, 1.2, look.shirt)
    if look.hair_end:
        side, end = look.width + 0.22, look.hair_end
        pen.oval(0, -0.15, side, 1.08, look.hair)
        pen.shape([(-side, -0.2), (side, -0.2), (side + 0.06, end), (-side - 0.06, end)], look.hair)
        for x in np.linspace(-side + 0.1, side - 0.1, 6):  # the tips of the locks
            pen.oval(x, end, 0.18, 0.2, look.hair)
        for x in (-side, -side + 0.14, side - 0.14, side):
            pen.line([(0.97 * x, -0.3), (x, end)], 0.035, look.strands)
        if look.curly:
            for y in np.linspace(-0.5, end, 7):
                pen.oval(-side, y, 0.17, 0.17, look.hair)
                pen.oval(side, y, 0.17, 0.17, look.hair)
    else:
        pen.oval(0, -0.2, look.width + 0.14, 0.36, look.strands)  # seen above the ears
    shadow = _mix(look.skin, _INK, 0.2)
    pen.shape([(-0.36, 0.7), (0.36, 0.7), (0.44, 1.5), (-0.44, 1.5)], shadow)
    pen.oval(0, 1.5, 0.44, 0.16, shadow)


def _draw_head(pen: _Pen, look: _Look) -> None:
    if not look.hair_end:
        for x in (-look.width, look.width):
            pen.oval(x, 0.04, 0.14, 0.22, _mix(look.skin, _INK, 0.1))
    pen.shape(_outline(look), look.skin)
    if look.beard:
        outline = _outline(look)
        chin = outline[outline[:, 1] > 0.3]
        lip = [(-0.4, 0.45), (0, 0.36), (0.4, 0.45)]  # from the left cheek over the mouth
        pen.shape([*map(tuple, chin), *lip], _mix(look.skin, look.hair, look.beard))


def _draw_eyes(pen: _Pen, look: _Look, female: bool) -> None:
    brow = _mix(look.hair, _INK, 0.5)
    for side in (-1, 1):
        x = side * 0.34
        if female:
            pen.oval(x, -0.1, 0.19, 0.13, _mix(look.skin, (150, 80, 150), 0.45))  # eye shadow
        pen.oval(x, -0.05, 0.16, 0.1, _WHITE)
        pen.oval(x, -0.05, 0.085, 0.09, look.eye)
        pen.oval(x, -0.05, 0.045, 0.05, _INK)
        pen.oval(x + 0.03, -0.08, 0.02, 0.02, _WHITE)
        if female:
            pen.arc(x, -0.06, 0.18, -0.11, 0.045, _INK)
            for lift in (0.0, 0.06, 0.12):  # lashes
                pen.line([(x + side * 0.15, -0.08), (x + side * 0.26, -0.1 - lift)], 0.025, _INK)
            pen.arc(x, -0.25, 0.17, -0.08, 0.035, brow)
        else:
            pen.arc(x, -0.06, 0.16, -0.1, 0.025, _INK)
            pen.arc(x, -0.23, 0.22, -0.05, 0.1, brow)
    nose = _mix(look.skin, _INK, 0.25)
    pen.line([(0.02, 0.02), (-0.08, 0.26), (-0.02, 0.31), (0.09, 0.28)], 0.035, nose)


def _draw_mouth(pen: _Pen, look: _Look, smile: float) -> None:
    t = np.linspace(-1, 1, 9)
    upper = np.stack([0.27 * t, 0.55 + 0.3 * smile * (1 - t**2)], axis=1)
    lower = np.stack([0.27 * t[::-1], 0.55 + 1.6 * smile * (1 - t**2)], axis=1)
    pen.shape(np.concatenate([upper, lower]), _WHITE)
    pen.line(np.concatenate([upper, lower, upper[:1]]), 0.05, look.lips)


def _draw_lines(pen: _Pen, look: _Look) -> None:
    crease = _mix(look.skin, _INK, 0.12 + 0.1 * look.lines)
    for line in range(look.lines):
        pen.arc(0, -0.4 - 0.09 * line, 0.34 - 0.03 * line, -0.03, 0.03, crease)
    if look.lines:
        for side in (-1, 1):  # from the nose to the mouth
            pen.line([(side * 0.2, 0.28), (side * 0.33, 0.46)], 0.03, crease)
    if look.lines > 1:
        for side in (-1, 1):
            pen.arc(side * 0.34, 0.1, 0.15, 0.05, 0.03, crease)  # bags under the eyes
            for lift in (-0.06, 0.0, 0.06):  # crow's feet
                pen.line([(side * 0.54, -0.04), (side * 0.65, -0.04 + lift)], 0.025, crease)


def _draw_hair(pen: _Pen, look: _Look, part: float) -> None:
    """The hair above the forehead; it is highest at the parting, at x = `part`."""
    if look.bald:
        return
    side, temple = look.width + 0.05, -0.18
    t = np.linspace(np.pi, 2 * np.pi, 25)
    crown = np.stack([side * np.cos(t), temple + 0.98 * np.sin(t)], axis=1)
    across = np.linspace(side, -side, 17)
    away = (across - part) / (side - np.sign(across - part) * part)  # -1 … 1, 0 at the parting
    fringe = np.stack([across, look.hairline + (temple - look.hairline) * away**2], axis=1)
    pen.shape(np.concatenate([crown, fringe]), look.hair)
    if look.curly:
        for x, y in crown[2:-2:2]:
            pen.oval(x, y, 0.17, 0.17, look.hair)
    t = np.linspace(0, np.pi / 2, 6)
    for x, y in fringe[[0, 1, 3, 5, -6, -4, -2, -1]]:  # from the parting's top to the fringe
        strand = (part + (x - part) * np.sin(t), -1.05 + (y + 1.03) * (1 - np.cos(t)))
        pen.line(np.stack(strand, axis=1), 0.025, look.strands)


def _draw_mask(pen: _Pen, look: _Look, mask: MaskLabels, rng: np.random.Generator) -> None:
    if mask is MaskLabels.NORMAL:
        return
    if mask is MaskLabels.MASK:
        top, slip = rng.uniform(0.0, 0.08), 0.02
    else:  # under the nose, or under the mouth too
        top, slip = rng.choice([0.36, 0.7]) + rng.uniform(0, 0.06), 0.1
    colour = _vary(rng, _MASKS[rng.integers(len(_MASKS))], 12)
    shade = _mix(colour, _INK if sum(colour) > 300 else _WHITE, 0.22)
    edge = _outline(look) * (1.03, 1.0) + (0, slip)
    edge = edge[edge[:, 1] > top]
    right, left = edge[0], edge[-1]
    for corner, side in ((left, -1), (right, 1)):
        pen.line([(side * look.width, -0.06), (corner[0], corner[1] + 0.1)], 0.03, shade)
    pen.shape([*map(tuple, edge), (-0.22, top - 0.05), (0.22, top - 0.05)], colour)
    for share in (0.25, 0.5, 0.75):  # pleats
        y = top + share * (1.05 + slip - top)
        pen.arc(0, y, 0.5 * look.width, 0.05, 0.025, shade)


def _draw_glasses(pen: _Pen) -> None:
    t = np.linspace(0, 2 * np.pi, 25)
    for x in (-0.34, 0.34):
        pen.line(np.stack([x + 0.26 * np.cos(t), -0.04 + 0.2 * np.sin(t)], axis=1), 0.035, _INK)
    pen.arc(0, -0.08, 0.08, -0.03, 0.035, _INK)


def _outline(look: _Look) -> np.ndarray:
    """The head's outline (N, 2), from the right temple over the chin and round the crown."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    x, y = np.cos(t), np.sin(t)
    x = np.where(y > 0, np.sign(x) * np.abs(x) ** look.jaw, x)
    return np.stack([look.width * x, np.where(y > 0, 1.05 * y, 1.02 * y)], axis=1)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with that share of `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _vary(rng: np.random.Generator, colour: Colour, spread: int) -> Colour:
    red, green, blue = (
        min(255, max(0, c + int(rng.integers(-spread, spread + 1)))) for c in colour
    )
    return red, green, blue


def _any_colour(rng: np.random.Generator) -> Colour:
    red, green, blue = (int(level) for level in rng.integers(40, 226, 3))
    return red, green, blue
