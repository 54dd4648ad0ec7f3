"""Training with PyTorch-Ignite: engines, handlers, and the run that ties them together.

from maskcls.config import resolve
from maskcls.training import train

result = train(resolve("age", "scratch", flags={"data_dir": ("data/train",)}))
"""

from maskcls.training.figures import grid_image
from maskcls.training.folds import start_group, train_group
from maskcls.training.paths import increment_path
from maskcls.training.presets import choose_config
from maskcls.training.run import RunResult, resume, train
from maskcls.training.schedule import get_lr
from maskcls.training.seeding import seed_everything

__all__ = [
    "RunResult",
    "choose_config",
    "get_lr",
    "grid_image",
    "increment_path",
    "resume",
    "seed_everything",
    "start_group",
    "train",
    "train_group",
]
