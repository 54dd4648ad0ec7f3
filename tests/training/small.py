"""What the trainings of these tests have in common: a small network on small pictures."""

SMALL = {
    "model": "base",
    "weights": "none",
    "height": 32,
    "width": 32,
    "crop": None,
    "batch_size": 16,
    "val_ratio": 0.25,
    "device": "cpu",
    "precision": "fp32",
}
