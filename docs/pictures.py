"""The pictures of the documentation, all of drawn people. To make them anew, in the clone's root:

    make demo
    python docs/pictures.py
    python docs/pictures.py --browser chromium    # also the picture of the report's head

The confusion matrix and the report are those of `make demo`; the other pictures need none.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this clone, installed or not

from maskcls.commands.evaluate import main as evaluate
from maskcls.config import TrainConfig
from maskcls.data.augmentation import create_augmentation
from maskcls.data.cartoon import draw_picture
from maskcls.data.mixing import Mixing
from maskcls.data.sample import plan_people
from maskcls.labels import MASK_OF_STEM

ASSETS = Path(__file__).resolve().parent / "assets"
SEED = 7  # of the sample
MARGIN = 4  # pixels between pictures
PEOPLE = 6


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the pictures of the documentation.")
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo", metavar="DIR")
    parser.add_argument("--browser", metavar="PROGRAM", help="a Chromium, for the report's picture")
    args = parser.parse_args()
    people = plan_people(1, PEOPLE, SEED)
    save_jpeg(
        grid(
            [draw_picture(person, stem, SEED).resize((96, 128)) for stem in MASK_OF_STEM]
            for person in (people[0], people[4], people[5])
        ),
        "sample.jpg",
    )
    faces = [draw_picture(person, "normal", SEED) for person in people]
    save_jpeg(grid(augmented(faces)), "augmentations.jpg")
    confusion = args.demo / "confusion.png"
    if not confusion.is_file():
        print(f"{confusion} is not there: make demo, then run this again for the other pictures")
        return 1
    with Image.open(confusion) as image:
        save_png(image, 960, "confusion.png")
    if args.browser:
        save_png(report_head(args.demo, args.browser), 960, "report.png")
    return 0


def augmented(faces: Sequence[Image.Image]) -> Iterable[list[Image.Image]]:
    """A row for each augmentation, then mixup and CutMix."""
    indices = range(len(faces))
    for name in ("BaseAugmentation", "CustomAugmentation", "BestAugmentation", "RandAugmentation"):
        spec = TrainConfig(augmentation=name).preprocess()
        pixels = torch.from_numpy(np.stack([spec.resize(face) for face in faces]))
        images = create_augmentation(name, spec, SEED)(pixels, indices, epoch=1)
        yield shown(images)
        if name == "BaseAugmentation":
            plain = images
    for mixing in (Mixing(1.0, 0.0, SEED), Mixing(0.0, 1.0, SEED)):
        mixed, _ = mixing(plain, torch.zeros(len(faces), 1), indices, 1)
        yield shown(mixed)


def shown(images: torch.Tensor) -> list[Image.Image]:
    """Normalised float32 (B, 3, H, W) → pictures."""
    spec = TrainConfig().preprocess()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    levels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).numpy()]


def grid(rows: Iterable[Sequence[Image.Image]]) -> Image.Image:
    """Pictures of one size, a row for each sequence."""
    listed = list(rows)
    width, height = (side + MARGIN for side in listed[0][0].size)
    size = (len(listed[0]) * width - MARGIN, len(listed) * height - MARGIN)
    sheet = Image.new("RGB", size, "white")
    for row, pictures in enumerate(listed):
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (column * width, row * height))
    return sheet


def report_head(demo: Path, browser: str) -> Image.Image:
    """What a browser shows first of the report on both networks of the demo."""
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder, "report.html"), Path(folder, "report.png")
        shown = os.path.relpath(demo)  # the report says where the runs lie
        evaluate([shown, "--report", str(page), "--no-confusion"])
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,800"]
        subprocess.run([browser, *options, f"--screenshot={picture}", page.as_uri()], check=True)
        with Image.open(picture) as image:
            return image.convert("RGB")


def save_jpeg(image: Image.Image, name: str) -> None:
    image.save(ASSETS / name, quality=85, optimize=True)
    say(name)


def save_png(image: Image.Image, width: int, name: str) -> None:
    """At most so wide, in 64 colours: these pictures have few."""
    small = image.convert("RGB")
    small.thumbnail((width, 10 * width))
    small.quantize(64, dither=Image.Dither.NONE).save(ASSETS / name, optimize=True)
    say(name)


def say(name: str) -> None:
    print(f"{ASSETS / name}: {(ASSETS / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    raise SystemExit(main())
