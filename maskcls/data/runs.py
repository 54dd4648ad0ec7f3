"""The people of a run, found again from its folder: who trained and who validated."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from maskcls.config import read_yaml
from maskcls.data.fixes import Fix, apply_fixes
from maskcls.data.profiles import Profile, read_all_profiles
from maskcls.data.splits import changed_people, people_of, read_split, split_hash
from maskcls.errors import ConfigError, DataError, PictureError
from maskcls.images import picture_digest, read_image
from maskcls.labels import MULTI
from maskcls.manifest import Manifest


def split_beside(checkpoint: Path) -> str:
    """The text of the `split.csv` in a checkpoint's folder.

    Raises:
        DataError: there is none.
    """
    table = checkpoint.parent / "split.csv"
    try:
        return read_split(table)
    except OSError:
        raise DataError(f"{table}: no split of the run beside its checkpoint") from None


def split_of_run(checkpoint: Path, manifest: Manifest) -> str:
    """The text of the `split.csv` that a checkpoint in a run folder was trained with.

    Raises:
        DataError: it is gone, or another lies there.
    """
    text = split_beside(checkpoint)
    if split_hash(text) != manifest.split_hash:
        raise DataError(f"{checkpoint.parent / 'split.csv'}: is not the split of {checkpoint}")
    return text


def people_of_run(
    checkpoint: Path, manifest: Manifest, *sides: str, way_out: str = "train a new one"
) -> list[Profile]:
    """These sides, `train`, `val` or both, of the split that a checkpoint in a run folder was
    trained with, labels corrected as they were then. `way_out`: what messages advise.

    Raises:
        DataError: its split or its pictures are not where they were, or somebody of these sides has
            other labels or pictures than then.
    """
    try:
        table = split_of_run(checkpoint, manifest)
    except DataError as error:
        raise DataError(f"{error}; {way_out}") from None
    try:
        people = read_all_profiles(data_folders(checkpoint, manifest))
    except (DataError, ConfigError, KeyError) as error:
        raise DataError(f"the pictures of {checkpoint} are gone: {error}; {way_out}") from None
    fixed = apply_fixes(people, [Fix(**fix) for fix in manifest.fixes])
    found = []
    for side in sides:
        names = people_of(table, side)
        own = [person for person in fixed if person.person in names]
        changed = changed_people(table, side, own) or _repainted(table, side, own)
        if changed:
            raise DataError(
                f"{len(changed)} people of {checkpoint} are gone, or have other labels or pictures "
                f"than it was trained with, first: {changed[0]}; {way_out}"
            )
        found += own
    return found


def _repainted(table: str, side: str, people: Sequence[Profile]) -> list[str]:
    """Of the people of one side those with another picture than in the text of a `split.csv`, or
    with one of another mask. Who has one that cannot be read is not among them: whoever reads it
    says so, and leaves it out."""
    paths = [picture.path for person in people for picture in person.pictures]
    with ThreadPoolExecutor() as pool:
        read = tqdm(
            pool.map(picture_digest, paths), "reading", len(paths), leave=False, disable=None
        )
        digests = {str(path): digest for path, digest in zip(paths, read, strict=True)}
    changed = frozenset(changed_people(table, side, people, digests))
    damaged = {
        person.person
        for person in people
        if person.person in changed
        and not all(_is_readable(picture.path) for picture in person.pictures)
    }
    return sorted(changed - damaged)


def _is_readable(path: Path) -> bool:
    try:
        read_image(path)
    except PictureError:
        return False
    return True


def data_folders(checkpoint: Path, manifest: Manifest) -> list[Path]:
    """Where the data of a checkpoint are: as the run folder's config says, which a resumed training
    writes anew when they have moved, or else as the checkpoint does.

    Raises:
        ConfigError: a damaged config.
        KeyError: neither says.
    """
    own = checkpoint.parent / "config.yaml"
    config = read_yaml(own) if own.is_file() else manifest.config
    return [Path(folder) for folder in config["data_dir"]]


def labelled_pictures(people: Sequence[Profile]) -> list[tuple[Path, int]]:
    """Their pictures, each with its class of the 18."""
    return [
        (
            picture.path,
            int(MULTI.encode(mask=picture.mask, gender=person.gender, age=person.age_group)),
        )
        for person in people
        for picture in person.pictures
    ]
