"""Weights and optimiser state as whole tensors under their own names, whatever wraps or shards the model.

Checkpoints are so the same files on one process and on many, and hold no pickles: neither torch's distributed
checkpoints nor DeepSpeed's own are used.
"""

import copy
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.checkpoint import state_dict as gathered
from transformers import WhisperForConditionalGeneration

from distill.training.checkpoint import Tensors
from distill.training.objective import DistillationObjective
from recipes.core.errors import UserError
from recipes.schema.train_section import TrainSection

State = dict[Any, dict[str, Any]]
"""By parameter, its name or its number: the optimiser's tensors and numbers."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


def without_head(weights: Tensors) -> Tensors:
    """All but the head, which is tied to the embedding and stored with it."""
    return {name: value for name, value in weights.items() if not name.endswith("proj_out.weight")}


class Replicated:
    """Every process holds the whole student: one process, or data parallel."""

    steps_in_backward = False

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer):
        inner: Any = getattr(model, "module", model)
        self.objective: DistillationObjective = inner
        self.optimizer = optimizer

    def student(self) -> WhisperForConditionalGeneration:
        """The student whole; the same object that is trained."""
        return self.objective.student

    def weights(self) -> Tensors:
        """The objective's weights by name."""
        return without_head(self.objective.state_dict())

    def moments(self) -> State:
        """The optimiser's state."""
        state: State = self.optimizer.state_dict()["state"]
        return state

    def load(self, weights: Tensors, moments: State) -> None:
        """Put both back."""
        # A tied head is missing by name.
        _, unexpected = self.objective.load_state_dict(weights, strict=False)
        assert not unexpected, unexpected
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})


class FullySharded:
    """PyTorch FSDP2: each process holds a slice of every tensor. `plain` is a copy made before, filled when needed."""

    steps_in_backward = False

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, plain: DistillationObjective):
        self.model, self.optimizer, self.plain = model, optimizer, plain

    def student(self) -> WhisperForConditionalGeneration:
        """A whole copy on every process."""
        return _filled(self.plain, self.weights())

    def weights(self) -> Tensors:
        """The objective's weights by name; all processes take part."""
        options = gathered.StateDictOptions(full_state_dict=True)
        found: Tensors = gathered.get_model_state_dict(self.model, options=options)  # type: ignore[assignment]
        return without_head(found)

    def moments(self) -> State:
        """The optimiser's state by parameter name; all processes take part."""
        options = gathered.StateDictOptions(full_state_dict=True)
        found: Any = gathered.get_optimizer_state_dict(self.model, self.optimizer, options=options)
        state: State = found["state"]
        return state

    def load(self, weights: Tensors, moments: State) -> None:
        """Put both back; every process has read all of them and keeps its slices."""
        # A tied head is missing by name.
        options = gathered.StateDictOptions(full_state_dict=True, strict=False)
        values: dict[str, Any] = {**weights}
        gathered.set_model_state_dict(self.model, values, options=options)
        groups = gathered.get_optimizer_state_dict(self.model, self.optimizer, options=options)["param_groups"]
        found: Any = {"state": moments, "param_groups": groups}
        gathered.set_optimizer_state_dict(self.model, self.optimizer, found, options=options)


class DeepSpeed:
    """ZeRO 1 and 2: the student is whole in the arithmetic's precision, float32 weights and moments are sharded."""

    steps_in_backward = True

    def __init__(self, engine: Any, plain: DistillationObjective):
        self.engine, self.plain = engine, plain

    def student(self) -> WhisperForConditionalGeneration:
        """A whole float32 copy on every process."""
        return _filled(self.plain, self.weights())

    def weights(self) -> Tensors:
        """The objective's float32 weights by name; all processes take part."""
        from deepspeed.utils import safe_get_full_fp32_param

        found = {name: value.float() for name, value in self.engine.module.state_dict().items()}
        for name, parameter in self._trained():
            found[name] = safe_get_full_fp32_param(parameter)
        return without_head(found)

    def moments(self) -> State:
        """AdamW's state by parameter name; all processes take part."""
        from deepspeed.utils import safe_get_full_optimizer_state as get

        step = max(float(state["step"]) for state in self.engine.optimizer.optimizer.state.values())
        return {
            name: {"step": step, **{key: get(parameter, key) for key in _MOMENTS}}
            for name, parameter in self._trained()
        }

    def load(self, weights: Tensors, moments: State) -> None:
        """Put both back; every process has read all of them and keeps its slices."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self.engine.module.load_state_dict(weights, strict=False)
        # ZeRO makes its moments in the first step, and a resumed run sets them before: AdamW's, made as it makes them.
        inner, step = self.engine.optimizer.optimizer, torch.as_tensor(next(iter(moments.values()))["step"])
        for flat in (flat for group in inner.param_groups for flat in group["params"]):
            inner.state[flat] = {"step": step.clone()} | {key: torch.zeros_like(flat) for key in _MOMENTS}
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._trained():
            safe_set_full_fp32_param(parameter, weights[name])
            for key in _MOMENTS:
                safe_set_full_optimizer_state(parameter, moments[name][key], key)

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [item for item in self.engine.module.named_parameters() if item[1].requires_grad]


Strategy = Replicated | FullySharded | DeepSpeed


def prepare_for_training(
    accelerator: Accelerator, section: TrainSection, objective: DistillationObjective, optimizer: torch.optim.Optimizer
) -> tuple[torch.nn.Module, torch.optim.Optimizer, Strategy]:
    """Model and optimiser as accelerate's configuration wraps them; UserError for what a sharded student cannot do."""
    kind = accelerator.distributed_type
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        model, optimizer = accelerator.prepare(objective, optimizer)
        return model, optimizer, Replicated(model, optimizer)
    for key, wrong in {
        "ema_decay": section.ema_decay is not None,
        "micro_batch_size": section.micro_batch_size == "auto",
        "optimizer": section.optimizer != "adamw",
        "compile": section.compile,
    }.items():
        if wrong:
            raise UserError(
                f"{section.name}.{key}: {getattr(section, key)} needs a whole student in each process, found "
                f"{kind.value} in the accelerate configuration; use recipes/accelerate/ddp.yaml, or leave it out"
            )
    plain = objective.of(copy.deepcopy(objective.student)).to(accelerator.device)
    if kind == DistributedType.FSDP:
        if not accelerator.is_fsdp2:
            raise UserError("accelerate configuration: expected fsdp_version: 2, found 1; see recipes/accelerate/")
        model, optimizer = accelerator.prepare(objective, optimizer)
        return model, optimizer, FullySharded(model, optimizer.optimizer, plain)  # type: ignore[attr-defined]
    settings = accelerator.deepspeed_plugin.deepspeed_config
    if (stage := settings["zero_optimization"]["stage"]) > 2:
        raise UserError(
            f"accelerate configuration: expected zero_stage 0 to 2, found {stage}; to shard the weights too, use "
            "recipes/accelerate/fsdp.yaml"
        )
    # DeepSpeed clips and steps by itself, and wants a batch size though nothing depends on it here.
    settings |= {"gradient_clipping": section.max_grad_norm, "train_micro_batch_size_per_gpu": 1}
    model, optimizer = accelerator.prepare(objective, optimizer)
    return model, optimizer, DeepSpeed(model, plain)


def _filled(plain: DistillationObjective, weights: Tensors) -> WhisperForConditionalGeneration:
    plain.load_state_dict({name: value for name, value in weights.items() if name.startswith("student.")}, strict=False)
    return plain.student
