"""A sharded student trains like a whole one, and its weights and moments are saved and restored whole."""

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from torch import distributed, multiprocessing
from torch.distributed.fsdp import fully_shard

from distill.data.examples import Example
from distill.data.training_batches import Batch, Collator
from distill.losses.distillation_loss import LossWeights
from distill.models.cutting import cut_layers
from distill.training.checkpoint import Checkpoint, TrainerState, latest_checkpoint, load_checkpoint, save_checkpoint
from distill.training.objective import DistillationObjective
from distill.training.strategy import FullySharded, Replicated
from eval.runtimes.torch_runtime import load_model
from tests.conftest import ROOT, TEACHER
from tests.unit.labels import decoding, label

WORLD = 2


def objective() -> DistillationObjective:
    return DistillationObjective(
        cut_layers(load_model(TEACHER), [0, 3], [0, 3]), LossWeights(1.0, 0.0, 2.0), freeze_encoder=True
    )


def batch(folder: Path, rank: int) -> Batch:
    """Return one utterance per process, or both for rank -1."""
    rows = [
        label(str(n), plain=decoding([257, 258, 260, 264, *range(60, 60 + n), 256], 4), audio=str(folder / f"{n}.wav"))
        for n in (3, 5)
    ]
    chosen = rows if rank < 0 else rows[rank : rank + 1]
    return Collator(7 * 16_000, 256)([Example(row, row.plain, []) for row in chosen])


def steps(model: Any, optimizer: torch.optim.Optimizer, data: Batch, count: int, world: int) -> None:
    tokens = (3 + 1) + (5 + 1)
    for _ in range(count):
        (model(data)[0] * world / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    # With the default epsilon, AdamW moves weights whose gradient is mere rounding error as far as all others.
    return torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=1e-3, eps=1e-3)


def sharded(rank: int, folder: Path, port: int) -> None:
    """Run one process: two steps, a checkpoint and a third step, then the third step again from the checkpoint."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    students = []
    for resumed in (False, True):
        model = objective()
        whole = model.for_student(cut_layers(load_model(TEACHER), [0, 3], [0, 3]))
        for layer in [*model.student.model.encoder.layers, *model.student.model.decoder.layers]:
            fully_shard(layer)
        fully_shard(model)
        strategy = FullySharded(model, adamw(model), whole)
        if not resumed:
            steps(model, strategy.optimizer, batch(folder, rank), 2, WORLD)
            weights, moments = strategy.weights(), strategy.moments()
            if rank == 0:
                state = TrainerState(best={}, skipped=[], scaler=None)
                save_checkpoint(folder / "checkpoints", Checkpoint(2, {"model": weights}, moments, state))
            distributed.barrier()
        else:
            path = latest_checkpoint(folder / "checkpoints")
            assert path is not None
            checkpoint = load_checkpoint(path, ["model"], torch.device("cpu"))
            strategy.load(checkpoint.models["model"], checkpoint.moments)
        steps(model, strategy.optimizer, batch(folder, rank), 1, WORLD)
        students.append({name: value.clone() for name, value in strategy.student().state_dict().items()})
    assert all(students[0][name].equal(value) for name, value in students[1].items())
    if rank == 0:
        torch.save(students[0], folder / "student.pt")
    distributed.destroy_process_group()


def test_a_student_sharded_by_fsdp_trains_and_resumes_like_a_whole_one(tmp_path: Path) -> None:
    for n in (3, 5):
        soundfile.write(tmp_path / f"{n}.wav", 0.1 * np.sin(np.arange(16_000) / n), 16_000)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(sharded, (tmp_path, port), WORLD)  # type: ignore[no-untyped-call]
    model = objective()
    whole = Replicated(model, adamw(model))
    steps(model, whole.optimizer, batch(tmp_path, -1), 3, 1)
    sharded_student = torch.load(tmp_path / "student.pt", weights_only=True)
    for name, value in whole.student().state_dict().items():
        torch.testing.assert_close(sharded_student[name], value, atol=2e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda file: file.name)
def test_accelerate_reads_its_configurations(file: Path) -> None:
    config: Any = load_config_from_file(str(file))
    assert config.distributed_type.value == yaml.safe_load(file.read_text())["distributed_type"]
