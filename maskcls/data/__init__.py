"""From folders of pictures to batches: profiles, checks, splits, cache, datasets, augmentation."""
