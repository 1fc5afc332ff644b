"""What a checkpoint of `fit` holds, and how a run goes on from one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lepton_train.training import checkpoint
from lepton_train.training.early_stopping import Best

if TYPE_CHECKING:
    from lepton_train.training.run import Run

_OP = "fit"


def identity(run: Run) -> dict[str, Any]:
    """What must be the same when a run is resumed."""
    s = run.settings
    return {
        "seed": s.seed,
        "batch_size": s.batch_size,
        "accumulate": s.accumulate,
        "shuffle": s.shuffle,
        "group_by_length": s.group_by_length,
        "precision": s.precision,
        "schedule": s.schedule,
        "processes": run.here.world,
        "examples": run.batches.examples,
        "optimizer": type(run.optimizer).__name__,
    }


def save_run(run: Run, better: bool = False) -> None:
    """Write the checkpoint; collective."""
    if run.files is None:
        return
    randoms = run.here.gather((run.random(), run.epoch_random))
    sums = run.here.gather((float(run.loss_sum), run.loss_rows))
    failure: str | None = None
    if run.here.rank == 0:
        weights = run.model.state_dict()
        try:
            if better:
                about = {"epoch": run.epoch, "best": run.best.to_dict()}
                checkpoint.save(run.files.best, {"model": weights, **about})
            checkpoint.save(
                run.files.last,
                {
                    "model": weights,
                    "optimizer": run.optimizer.state_dict(),
                    "rate": run.rate.state_dict(),
                    "scaler": run.scaler.state_dict(),
                    "best": run.best.state_dict(),
                    "monitor": [run.best.monitor, run.best.higher],
                    "best_weights": run.best_weights,
                    "history": run.history,
                    "place": [run.epoch, run.batch, run.step],
                    "seconds": run.seconds,
                    "random": [list(pair) for pair in randoms],
                    "sums": [list(pair) for pair in sums],
                    "identity": identity(run),
                },
            )
        except OSError as error:
            failure = str(error)
    failures = [text for text in run.here.gather(failure) if text]
    if failures:
        raise OSError(f"{_OP}: {failures[0]}")


def resume_run(run: Run) -> bool:
    """Go on from the checkpoint, if there is one and it is asked for."""
    if run.files is None:
        return False
    path = run.files.last
    if not run.settings.resume:
        if path.exists():
            raise ValueError(
                f"{_OP}: {str(path)!r} holds a run already; resume=True goes on with it, or "
                "give another place"
            )
        return False
    if not path.exists():
        if run.settings.progress and run.here.rank == 0:
            print(f"no checkpoint at {path} yet: training from the start", file=sys.stderr)
        return False
    state = checkpoint.load(path)
    for key, now in identity(run).items():
        # Checkpoints of earlier versions know nothing of groups.
        saved = state["identity"].get(key, False if key == "group_by_length" else None)
        if saved != now:
            raise ValueError(
                f"{_OP}: {str(path)!r} is of a run with {key} {saved}, got {now}; resume needs "
                "the same"
            )
    try:
        run.model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(f"{_OP}: {str(path)!r} is of another model: {error}") from error
    run.optimizer.load_state_dict(state["optimizer"])
    run.rate.load_state_dict(state["rate"])
    run.scaler.load_state_dict(state["scaler"])
    monitor, higher = state["monitor"]
    run.best = Best(monitor, higher, run.settings.early_stopping)
    run.best.load_state_dict(state["best"])
    run.best_weights = state["best_weights"]
    run.history = list(state["history"])
    run.epoch, run.batch, run.step = state["place"]
    run.seconds = state["seconds"]
    run.loss_sum, run.loss_rows = state["sums"][run.here.rank]
    present, run.epoch_random = state["random"][run.here.rank]
    run.set_random(present)
    return True
