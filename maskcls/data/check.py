"""What is wrong with a data folder, all of it at once: names, tables, pictures, people who are in it
twice.

`read_profiles` stops at the first fault, as a training should. This goes on to the last, so that a
folder is mended in one go.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskcls.data.fixes import Fix, apply_fixes
from maskcls.data.profiles import (
    Picture,
    Profile,
    iter_table,
    locate,
    nfc,
    parse_folder_name,
    people_folders,
    picture_of_file,
    profile_of_folder,
    visible,
)
from maskcls.errors import DataError, PictureError
from maskcls.images import content_digest, decode, is_image_file, read_bytes
from maskcls.labels import MASK_OF_STEM, MULTI
from maskcls.preprocessing import PreprocessSpec

Severity = Literal["error", "warning"]

NEAR_DUPLICATE = 0.97
"""Correlation of two thumbnails from which on they count as the same photo.

Measured on 400 people with seven pictures each, faces of about the same size and place. A picture
and its copy, 250 of them: saved again as JPEG of quality 30, at half or a quarter of the size,
darker by 30 % or with less contrast at least 0.995; brighter by 30 %, where highlights clip, 0.97
or more in 95 of 100. Two people, 2.2 million pairs with the same mask label: at most 0.951. A crop
that is off by 3 % gives 0.87 to 0.92, as strangers reach too, so cropped copies are not found.
"""
_THUMBNAIL = PreprocessSpec(height=32, width=32, crop=(0.8, 0.8))
