"""Further places for rows of metrics: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mtrl.files import write_atomic
from mtrl.registry import missing_extra
from mtrl.types import UserError


@runtime_checkable
class Sink(Protocol):
    """A further place for metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes one row. An `OSError` ends the use of this sink, not the run."""
        ...

    def close(self) -> None: ...


class TensorBoardSink:
    """TensorBoard event files in `folder`.

    Args:
        folder: Made if missing.
        purge_step: On resume, the checkpoint's step: TensorBoard hides what was logged after it.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # From the step after: the checkpoint's own row was logged before it.
        first = None if purge_step is None else purge_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=first)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def check_wandb() -> Any:
    """The module of Weights & Biases. Raises `UserError` if it is not installed, or not told who its user is."""
    try:
        import wandb
    except ImportError as error:
        raise missing_extra("log.wandb=true", "wandb", "wandb") from error
    try:
        wandb.login()
    except wandb.Error as error:
        raise UserError(
            f"log.wandb=true: {' '.join(str(error).split())} WANDB_MODE=offline needs no account."
        ) from error
    return wandb


class WandbSink:
    """Weights & Biases. A run that goes on goes on there too: its id is kept in `<run_dir>/wandb/run_id`.

    Args:
        run_dir: Run folder.
        options: Of `wandb.init` (project, name, config, ...).

    Raises:
        UserError: wandb cannot be used.
    """

    def __init__(self, run_dir: Path, **options: Any) -> None:
        wandb, kept = check_wandb(), run_dir / "wandb" / "run_id"
        if kept.is_file():
            # Rows after the checkpoint are there already, and wandb takes none twice.
            options |= {"id": kept.read_text(encoding="utf-8"), "resume": "allow"}
        try:
            self._run = wandb.init(dir=str(run_dir), **options)
        except wandb.Error as error:
            raise UserError(f"log.wandb=true: {' '.join(str(error).split())}") from error
        write_atomic(kept, self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
