"""Sinks for rows of metrics besides the file: TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mtrl.files import write_atomic
from mtrl.registry import missing_extra
from mtrl.types import UserError


@runtime_checkable
class Sink(Protocol):
    """Receives rows of metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row. After an `OSError` the run continues without this sink."""
        ...

    def close(self) -> None: ...


class TensorBoardSink:
    """TensorBoard event files in `folder`, with the run's settings for its HParams tab.

    Args:
        folder: Made if missing.
        settings: By dotted key. What is no number, truth value or text is shown as text.
        purge_step: On resume, the checkpoint's step. TensorBoard hides rows that were logged after it.
    """

    MEASURES = ("eval/success_rate", "eval/return")
    """Metrics that the HParams tab shows beside the settings, where they are logged."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # The row of the checkpoint's step was logged before the checkpoint, and stays.
        first = None if purge_step is None else purge_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=first)
        shown = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}
        experiment, session, self._end = hparams(shown, dict.fromkeys(self.MEASURES, 0.0))
        for summary in (experiment, session):
            self._writer._get_file_writer().add_summary(summary)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer._get_file_writer().add_summary(self._end)
        self._writer.close()


def check_wandb() -> Any:
    """The module of Weights & Biases. Raises `UserError` if it is not installed or nobody is logged in."""
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
    """Weights & Biases. A resumed run continues there, too: its id is stored in `<run_dir>/wandb/run_id`.

    Args:
        run_dir: Run folder.
        options: Arguments of `wandb.init` (project, name, config, ...).

    Raises:
        UserError: wandb cannot be used.
    """

    def __init__(self, run_dir: Path, **options: Any) -> None:
        wandb, id_file = check_wandb(), run_dir / "wandb" / "run_id"
        if id_file.is_file():
            # Rows after the checkpoint have been sent already; wandb ignores the repetition.
            options |= {"id": id_file.read_text(encoding="utf-8"), "resume": "allow"}
        try:
            self._run = wandb.init(dir=str(run_dir), **options)
        except wandb.Error as error:
            raise UserError(f"log.wandb=true: {' '.join(str(error).split())}") from error
        write_atomic(id_file, self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
