import contextlib
import io
import json
import logging
import math
import subprocess
import sys
import time
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from rich.console import Console

from mtrl.config import composed, train_config
from mtrl.run.console import NO_RESULTS, Progress, TaskResults, duration
from mtrl.run.logger import Logger, MetricAccumulator
from mtrl.run.sinks import TensorBoardSink, WandbSink, check_wandb
from mtrl.run.timing import PhaseTimer
from mtrl.system.usage import peak_memory_bytes
from mtrl.train import make_sinks
from mtrl.types import Ranks, UserError

TASKS = ("reach-v3", "push-v3", "door/x")


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- Logger ---------------------------------------------------------------------------------------------------------


class ListSink:
    def __init__(self):
        self.rows, self.closed = [], False

    def write(self, step, values):
        self.rows.append((step, dict(values)))

    def close(self):
        self.closed = True


def test_rows(tmp_path):
    sink = ListSink()
    logger = Logger(tmp_path, TASKS, [sink])
    logger.log(10, {"train/loss": torch.tensor([1.0, math.nan, 3.0]), "lr": torch.tensor(0.5), "n": torch.tensor(7)})
    # There for a reader while the file is open.
    assert rows(tmp_path) == [{"step": 10, "train/loss/reach-v3": 1.0, "train/loss/door/x": 3.0, "lr": 0.5, "n": 7}]
    logger.log(20, {"rate": 2.5})
    logger.close()
    assert rows(tmp_path)[1] == {"step": 20, "rate": 2.5}
    assert [step for step, _ in sink.rows] == [10, 20]
    assert sink.rows[1] == (20, {"rate": 2.5})
    assert sink.closed


def test_matrices_of_pairs_are_rows_of_short_numbers(tmp_path):
    sink = ListSink()
    logger = Logger(tmp_path, TASKS, [sink])
    logger.log(1, {"grad/cosine": torch.tensor([[1, 0.0012345, math.nan]] * 3), "x": 1.0})
    logger.close()
    assert rows(tmp_path) == [{"step": 1, "grad/cosine": [[1.0, 0.00123, None]] * 3, "x": 1.0}]
    assert sink.rows == [(1, {"x": 1.0})]


def test_nan_and_infinity_are_null(tmp_path):
    """Rows are JSON, which knows neither; sinks get them as they are."""
    sink = ListSink()
    logger = Logger(tmp_path, TASKS, [sink])
    pairs = torch.full((3, 3), -math.inf)
    logger.log(1, {"a": torch.tensor(math.nan), "b": math.inf, "c": torch.tensor([math.inf, 2, math.nan]), "d": pairs})
    logger.close()

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "a": None, "b": None, "c/reach-v3": None, "c/push-v3": 2.0, "d": [[None] * 3] * 3}
    ((_, values),) = sink.rows
    assert math.isnan(values["a"])
    assert (values["b"], values["c/reach-v3"]) == (math.inf, math.inf)


def test_wrong_shape_is_named(tmp_path):
    logger = Logger(tmp_path, TASKS)
    with pytest.raises(ValueError, match=r"'loss': .* 3 tasks, found shape \(2,\)"):
        logger.log(1, {"loss": torch.zeros(2)})
    logger.close()


def test_truncate_drops_later_rows_and_a_torn_line(tmp_path):
    logger = Logger(tmp_path, TASKS)
    for step in (10, 20, 30, 40):
        logger.log(step, {"x": step})
    logger.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "x"')
    resumed = Logger(tmp_path, TASKS)
    resumed.truncate(20)
    resumed.log(25, {"x": 25.0})
    resumed.close()
    assert rows(tmp_path) == [{"step": step, "x": step} for step in (10, 20, 25)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncate_of_a_run_that_has_not_logged(tmp_path):
    logger = Logger(tmp_path, TASKS)
    logger.truncate(0)
    logger.log(1, {"x": 1.0})
    logger.close()
    assert len(rows(tmp_path)) == 1


def test_a_full_disk_does_not_stop_training(tmp_path, caplog):
    """A real ENOSPC: /dev/full refuses every byte."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    logger = Logger(tmp_path, TASKS)
    with caplog.at_level(logging.WARNING):
        logger.log(1, {"x": 1.0})
        logger.log(2, {"x": 2.0})
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text
    # Room again: what waited comes first.
    (tmp_path / "metrics.jsonl").unlink()
    room = Logger(tmp_path, TASKS)
    logger._file, room._file = room._file, logger._file
    logger.log(3, {"x": 3.0})
    logger.close()
    room.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_an_unwritable_run_folder_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match=r"Cannot write .*metrics\.jsonl: No such file"):
        Logger(tmp_path / "nowhere", TASKS)


def test_a_failing_sink_is_dropped(tmp_path, caplog):
    class Full(ListSink):
        def write(self, step, values):
            super().write(step, values)
            raise OSError(28, "No space left on device")

    sink = Full()
    logger = Logger(tmp_path, TASKS, [sink])
    logger.log(1, {"x": 1.0})
    logger.log(2, {"x": 2.0})
    logger.close()
    assert len(sink.rows) == 1
    assert "Full failed" in caplog.text
    assert len(rows(tmp_path)) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def log(steps, value, purge_step=None):
        sink = TensorBoardSink(tmp_path / "events", {"agent.gamma": 0.9}, purge_step)
        for step in steps:
            sink.write(step, {"eval/success_rate/reach-v3": value})
        sink.close()

    log([10, 20, 30], 1.0)
    # Event files are read in the order of their names, which begin with the second they were made in.
    time.sleep(1.1)
    log([25], 2.0, purge_step=20)
    events = EventAccumulator(str(tmp_path / "events")).Reload().Scalars("eval/success_rate/reach-v3")
    assert [(event.step, event.value) for event in events] == [(10, 1.0), (20, 1.0), (25, 2.0)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_settings_in_tensorboard(tmp_path):
    """As its HParams tab reads them, with the metrics that belong to them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    settings = {"agent.gamma": 0.9, "seed": 3, "compile": False, "agent.name": "ppo", "init_from": None, "tags": ["a"]}
    sink = TensorBoardSink(tmp_path, settings)
    sink.write(1, {"eval/success_rate": 0.5})
    sink.close()
    stored = EventAccumulator(str(tmp_path)).Reload().SummaryMetadata
    content = plugin_data_pb2.HParamsPluginData.FromString
    begun = content(stored("_hparams_/session_start_info").plugin_data.content).session_start_info.hparams
    assert (begun["agent.gamma"].number_value, begun["seed"].number_value) == (0.9, 3)
    assert begun["compile"].bool_value is False
    assert [begun[key].string_value for key in ("agent.name", "init_from", "tags")] == ["ppo", "None", "['a']"]
    experiment = content(stored("_hparams_/experiment").plugin_data.content).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["eval/success_rate", "eval/return"]


def test_missing_wandb_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'pip install -c constraints.txt -e "\.\[wandb\]"'):
        WandbSink(tmp_path)


# --- MetricAccumulator ----------------------------------------------------------------------------------------------


def test_means_ignore_absent_tasks():
    nan = math.nan
    accumulator = MetricAccumulator()
    accumulator.add({"loss": torch.tensor([1.0, nan, nan]), "x": torch.tensor(1.0)})
    accumulator.add({"loss": torch.tensor([3.0, 5.0, nan]), "rare": torch.tensor(4)})
    means = accumulator.mean()
    torch.testing.assert_close(means["loss"], torch.tensor([2.0, 5.0, nan], dtype=torch.float64), equal_nan=True)
    assert (means["x"], means["rare"]) == (1.0, 4.0)
    assert accumulator.mean() == {}


def test_means_over_ranks():
    """This one: 1 and 3 in task 0, nothing in task 1. The other one: 5 in task 0, 7 in task 1."""

    class WithAnother(Ranks):
        def sum_all(self, tensors):
            total, count = tensors
            return [total + torch.tensor([5.0, 7.0]), count + torch.tensor([1, 1])]

    accumulator = MetricAccumulator(WithAnother())
    accumulator.add({"loss": torch.tensor([1.0, math.nan])})
    accumulator.add({"loss": torch.tensor([3.0, math.nan])})
    assert accumulator.mean()["loss"].tolist() == [3, 7]


def test_faults_stay_visible():
    accumulator = MetricAccumulator()
    for value in (1.0, math.nan, 2.0):
        accumulator.add({"scalar": torch.tensor(value), "vector": torch.tensor([math.inf, 1.0])})
    means = accumulator.mean()
    assert means["scalar"].isnan()
    assert means["vector"].tolist() == [math.inf, 1.0]


def test_added_values_may_change_afterwards():
    accumulator, value = MetricAccumulator(), torch.ones(3, requires_grad=True)
    accumulator.add({"x": value})
    with torch.no_grad():
        value.mul_(100)
    mean = accumulator.mean()["x"]
    assert mean.tolist() == [1, 1, 1]
    assert not mean.requires_grad


@pytest.mark.parametrize("cut", [7, 256, 300])
def test_accumulator_resumes_exactly(cut):
    values = torch.randn(600, 3)
    whole, first, second = MetricAccumulator(), MetricAccumulator(), MetricAccumulator()
    for value in values:
        whole.add({"x": value, "y": value[0]})
    for value in values[:cut]:
        first.add({"x": value, "y": value[0]})
    second.load_state_dict(first.state_dict())
    for value in values[cut:]:
        second.add({"x": value, "y": value[0]})
    expected, found = whole.mean(), second.mean()
    assert all(torch.equal(expected[name], found[name]) for name in ("x", "y"))
    torch.testing.assert_close(found["x"], values.double().mean(0))


# --- Progress -------------------------------------------------------------------------------------------------------

SUCCESS = TaskResults("success", {"reach-v3": 1.0, "push-v3": 0.5, "door/x": math.nan})
SHARES = {"env": 0.55, "update": 0.45}


def test_plain_lines():
    console = Console(file=io.StringIO(), width=80)
    with Progress(interval=1000, console=console) as progress:
        progress.update(1000, 100_000, 2000.0, SUCCESS, SHARES)
        progress.update(2000, 100_000, 2000.0, SUCCESS, SHARES)
        progress.print("[saved] checkpoint")
        progress.update(100_500, 100_000, 2000.0, SUCCESS, SHARES)  # the last rollout goes beyond
    lines = console.file.getvalue().splitlines()
    assert lines[:4] == [
        "training 1,000/100,000 (1.0%)  2,000 steps/s  50s left  success 0.75  env 55%",
        "  update 45%",
        "  reach-v3 1.00  push-v3 0.50  door/x --",
        "[saved] checkpoint",
    ]
    assert lines[4].startswith("training 100,500/100,000 (100.0%)  2,000 steps/s  0s left")


def test_returns_where_no_success_is_reported():
    console = Console(file=io.StringIO(), width=80)
    returns = TaskResults("return", {"pong": -20.25, "qbert": 1234.0})
    with Progress(interval=1000, console=console) as progress:
        progress.update(1000, 2000, 500.0, returns, {})
        progress.update(2000, 2000, 500.0, replace(returns, averaged=False), {})
    one, tasks, two, tasks_again = console.file.getvalue().splitlines()
    assert one.endswith("return 606.9")  # (-20.25 + 1234) / 2 = 606.875
    assert two.endswith("0s left")
    assert tasks == tasks_again == "  pong -20.2  qbert 1,234.0"


LONG = [f"button-press-topdown-{k:02}-v3" for k in range(50)]
"""As long as the longest names of Meta-World."""


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("num_tasks", [10, 50])
@pytest.mark.parametrize("terminal", [True, False])
def test_fits_the_screen(width: int, num_tasks: int, terminal: bool) -> None:
    """Where not all tasks fit, the lowest are shown: of 50 in 80 columns, 2 * 20 places hold 39 and a remark."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, height=24, color_system=None)
    results = TaskResults("success", {name: k / 50 for k, name in enumerate(LONG[:num_tasks])})
    with Progress(console=console) as progress:
        progress.update(398_400, 400_000, 1660.0, results, SHARES | {"evaluation": 0.02})
        lines = console.file.getvalue().replace("\x1b[?25l", "").splitlines()
    assert len(lines) <= (24 if terminal else 5)
    assert max(map(len, lines)) <= width
    headline = lines[1] if terminal else lines[0]  # not beside the bar
    assert headline.startswith("training 398,400/400,000 (99.6%)  1,660 steps/s  1s left  success")
    text = "\n".join(lines)
    shown = [name for name in results.by_task if name in text]
    assert shown == LONG[: len(shown)]
    if len(shown) < num_tasks:
        assert f"and {num_tasks - len(shown)} higher" in text
    if terminal:
        assert len(shown) == (39 if (width, num_tasks) == (80, 50) else num_tasks)


def test_terminal_display():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(console=console) as progress:
        progress.update(0, 100_000, 0.0, NO_RESULTS, {})
        progress.print("saved")
        progress.update(100_000, 100_000, 2000.0, SUCCESS, {})
    text = console.file.getvalue()
    assert all(part in text for part in ("door/x", "? left", "saved", "100,000/100,000"))
    assert text.endswith("\x1b[1A\x1b[2K")  # the last frame is erased


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (432, "7m12s"), (11_100, "3h05m"), (93_600, "1d02h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# --- time and memory ------------------------------------------------------------------------------------------------


def test_phases(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    timer = PhaseTimer()
    clock[0] += 1  # other
    for _ in range(2):
        with timer("env"):
            clock[0] += 3
            with timer("inference"):
                clock[0] += 1
            clock[0] += 0.5
    assert timer.seconds == {"other": 1, "env": 7, "inference": 2}
    assert timer.shares() == {"env": 0.7, "inference": 0.2, "other": 0.1}
    timer.reset()
    clock[0] += 2
    with contextlib.suppress(KeyError), timer("update"):
        clock[0] += 2
        raise KeyError
    assert timer.shares() == {"other": 0.5, "update": 0.5}


def test_shares_before_any_time_has_passed(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)
    assert PhaseTimer().shares() == {"other": 0.0}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_counts_live_children():
    code = "x = bytearray(b'1') * 200_000_000; del x; print('ready', flush=True); input()"
    alone = peak_memory_bytes()
    assert 50e6 < alone < 50e9
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    command = [sys.executable, "-c", nested]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        assert peak_memory_bytes() - alone > 200e6
        child.communicate("\n")


# --- Weights & Biases -----------------------------------------------------------------------------------------------


class FakeWandb(ModuleType):
    """As far as it is used: runs by id, and whether its user is known."""

    class Error(Exception):
        pass

    def __init__(self, logged_in=True):
        super().__init__("wandb")
        self.logged_in, self.runs = logged_in, {}

    def login(self):
        if not self.logged_in:
            raise self.Error("No API key configured.\nUse `wandb login` to log in.")

    def init(self, dir, id=None, resume=None, **options):
        assert id is None or resume == "allow"
        run = self.runs.setdefault(id or f"id{len(self.runs)}", FakeRun(id or f"id{len(self.runs)}"))
        run.options = options
        return run


class FakeRun:
    def __init__(self, id):
        self.id, self.rows = id, []

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        pass


def test_wandb_goes_on_with_its_run(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for session in range(3):
        sink = WandbSink(tmp_path / "one", project="mtrl")
        sink.write(session, {"x": 1.0})
        sink.close()
    WandbSink(tmp_path / "other", project="mtrl")
    assert {name: run.rows for name, run in wandb.runs.items()} == {
        "id0": [(0, {"x": 1.0}), (1, {"x": 1.0}), (2, {"x": 1.0})],
        "id1": [],
    }


def test_wandb_settings(tmp_path, monkeypatch):
    """The group is by default the sweep's; a run outside of a sweep has none."""
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    arguments = ["log.tensorboard=false", "log.wandb=true", "log.wandb_project=arms", "log.wandb_entity=lab"]
    config = train_config(composed([*arguments, "log.wandb_tags=[a,b]"], "train"))
    (tmp_path / "sweep" / "000_seed=1").mkdir(parents=True)
    make_sinks(config, tmp_path / "sweep" / "000_seed=1", 0)
    assert wandb.runs["id0"].options == {
        "project": "arms", "entity": "lab", "group": None, "tags": ["a", "b"], "name": "000_seed=1",
        "config": config.plain(),
    }  # fmt: skip
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    make_sinks(config, tmp_path / "sweep" / "000_seed=1", 10)
    assert wandb.runs["id0"].options["group"] == "sweep"
    config = train_config(composed([*arguments, "log.wandb_group=mine"], "train"))
    make_sinks(config, tmp_path / "sweep" / "000_seed=1", 10)
    assert wandb.runs["id0"].options["group"] == "mine"
    assert len(wandb.runs) == 1


def test_wandb_does_not_know_its_user(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(logged_in=False))
    with pytest.raises(
        UserError, match=r"^log.wandb=true: No API key configured\. Use `wandb login` to log in\. WANDB_"
    ):
        check_wandb()
