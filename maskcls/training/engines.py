"""The training and the evaluation step as Ignite engines. Handlers attach elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskcls.data.augmentation import BaseAugmentation
from maskcls.data.loaders import Batch, Share
from maskcls.data.mixing import Mixing
from maskcls.devices import Precision
from maskcls.errors import TrainingError
from maskcls.models import predict_logits
from maskcls.training.processes import gather


def create_trainer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module,
    augmentation: BaseAugmentation,
    *,
    device: torch.device,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    share: Share,
    clip_norm: float,
    class_weights: Tensor | None = None,
    soft_targets: Tensor | None = None,
    mixing: Mixing | None = None,
    say: Callable[[str], None] = print,
) -> Engine:
    """An engine whose iteration is one optimiser step on one batch, in the parts of `share`.

    Where the memory does not suffice, there are twice as many parts from then on, which is said;
    the step is still that of the whole batch. Several processes that share batches (`model` is then
    what `share_gradients` answers) load theirs in the parts that they began with.

    `class_weights` (C,): those of the criterion. Its mean over classes is over their weights, so a
    part counts by those, too. A loss that is no mean, as F1, is that of each part.

    `soft_targets`: shares (N, C) of all pictures of the data set, taken instead of their classes;
    a batch's indices count modulo N. `mixing` needs them.

    Its output: {"loss": float, "images": batch size}.

    Raises (from the step):
        TrainingError: the loss is NaN or infinite, or the memory does not suffice for two pictures,
            or for a share; the weights are still those before the step.
    """

    alone = share.processes == 1
    weights = None if class_weights is None else class_weights.to(device)

    def size(target: Tensor) -> float | Tensor:
        """What the criterion's mean divides by."""
        if weights is None or target.is_floating_point():  # of shares, it is over pictures
            return len(target)
        return weights[target].sum()

    def accumulated_loss(images: Tensor, target: Tensor) -> float:
        """Leaves the gradient of the mean loss of a batch in the parameters. images: own rows."""
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        sizes = share.sizes(len(target))
        done = 0
        for part, y in zip(sizes, torch.split(target, [sum(part) for part in sizes]), strict=True):
            own = part[share.process]
            x = images[done : done + own] if own else images[:1]
            done += own
            # Gradients are exchanged once, with those of the last part.
            waits = isinstance(model, DistributedDataParallel) and part is not sizes[-1]
            with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with precision.autocast():
                    logits = model(x)
                # All processes have the loss of the whole part, and each its own rows' gradient.
                loss = criterion(gather(logits.float(), part), y) * (size(y) / size(target))
                scaler.scale(loss * share.processes).backward()  # their mean is then the sum
            total += loss.detach()
        return float(total)

    def step(engine: Engine, batch: Batch) -> dict[str, float]:
        nonlocal share
        model.train()
        pixels, target, indices = batch
        epoch = engine.state.epoch
        rows = torch.from_numpy(share.rows(len(indices)))
        images = augmentation(pixels.to(device, non_blocking=True), indices[rows].tolist(), epoch)
        if soft_targets is not None:
            target = soft_targets[indices % len(soft_targets)]
        target = target.to(device, non_blocking=True)
        if mixing is not None:  # partners may be another process's
            whole = images if alone else _gather_batch(images, share, len(target))
            mixed, target = mixing(whole, target, indices.tolist(), epoch)
            images = mixed if alone else mixed[rows.to(device)]
        images = images.contiguous(memory_format=torch.channels_last)
        most = max(1, len(target) // 2)  # batch normalisation cannot train on one picture
        while True:
            try:
                value = accumulated_loss(images, target)
                break
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            # Outside of the except clause, whose error holds what was allocated.
            if not alone:  # the others have computed on, and wait for this part
                raise TrainingError(
                    f"out of memory; --accumulate {2 * share.parts} computes smaller parts of a "
                    "batch"
                )
            if share.parts >= most:
                raise TrainingError(
                    f"out of memory with {len(target) // most} pictures at a time; take a smaller "
                    "--height, --width or --model"
                )
            share = replace(share, parts=min(share.parts * 2, most))
            say(
                f"out of memory: batches of {len(target)} are computed in {share.parts} parts from "
                f"here on; --accumulate {share.parts} does so from the start"
            )
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if not value - value == 0:  # NaN or infinite
            raise TrainingError(
                f"the loss is {value} at epoch {epoch}, iteration {engine.state.iteration}; "
                "a lower --lr or --clip-norm 1 may help. What was saved before it is kept"
            )
        scaler.unscale_(optimizer)
        if clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        scaler.step(optimizer)
        scaler.update()
        return {"loss": value, "images": len(target)}

    return Engine(step)


def _gather_batch(images: Tensor, share: Share, count: int) -> Tensor:
    """Own pictures (rows, 3, H, W) → those of the whole batch (count, 3, H, W), in its order."""
    sizes = share.sizes(count)
    own = [part[share.process] for part in sizes]
    pieces = torch.split(images[: sum(own)], own)
    return torch.cat([gather(piece, part) for piece, part in zip(pieces, sizes, strict=True)])


def _out_of_memory(error: RuntimeError) -> bool:
    # CUDA has a class for it; the CPU's allocator has only its words.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def create_evaluator(
    model: nn.Module,
    plain: BaseAugmentation,
    *,
    device: torch.device,
    precision: Precision,
    tta: str = "none",
    share: Share | None = None,
) -> Engine:
    """An engine that answers {"logits": (B, C), "target": (B,), "indices": (B,)} for a batch: of
    all its pictures, also where this process computes but a `share` of them.

    Raises (from the step):
        TrainingError: an answer is NaN or infinite. Its argmax is a class like any other, which
            would be scored.
    """
    own = share or Share()

    @torch.inference_mode()
    def step(engine: Engine, batch: Batch) -> dict[str, Tensor]:
        model.eval()
        pixels, target, indices = batch
        images = plain(pixels.to(device, non_blocking=True))
        with precision.autocast():
            images = images.contiguous(memory_format=torch.channels_last)
            logits = predict_logits(model, images, tta)
        [sizes] = own.sizes(len(target))
        logits = gather(logits, sizes)
        if not torch.isfinite(logits).all():
            raise TrainingError(
                "the network answers some pictures with NaN or infinity; a lower --lr or "
                "--clip-norm 1 may help. What was saved before it is kept"
            )
        return {"logits": logits, "target": target.to(device), "indices": indices}

    return Engine(step)
