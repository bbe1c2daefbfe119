"""Strategies: how the student's weights and optimiser state are spread over the processes of a run.

Accelerate's configuration decides whether each process holds the whole student (`Replicated`: one process, or data
parallel), or only a shard of its weights and optimiser state (`FullySharded`: PyTorch FSDP2; `DeepSpeed`: ZeRO stage 1
or 2). The trainer validates, saves and resumes through a `Strategy`, which hides the difference: it gathers whole
tensors under their own names, and distributes them again.

Checkpoints are therefore the same files for one process and for many, and contain no pickles. Neither torch's
distributed checkpoints nor DeepSpeed's own are used.
"""

import copy
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.checkpoint import state_dict as gathered
from transformers import WhisperForConditionalGeneration

from distill.training.checkpoint import OptimizerState, Tensors
from distill.training.objective import DistillationObjective
from recipes.core.errors import UserError
from recipes.schema.train_section import TrainSection

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's moments by their names in the optimiser state."""


class Strategy(Protocol):
    """Gathers and distributes the weights and the optimiser state of the wrapped objective.

    If the student is sharded, all processes must call a method together.
    """

    steps_in_backward: bool
    """Whether the backward pass also updates the weights, so that a step cannot be skipped after it."""

    def student(self) -> WhisperForConditionalGeneration:
        """Return the whole student in float32 on every process."""
        ...

    def weights(self) -> Tensors:
        """Return the objective's whole weights by name, without the tied LM head."""
        ...

    def moments(self) -> OptimizerState:
        """Return the optimiser's whole state by parameter name, or by number if the student is replicated."""
        ...

    def load(self, weights: Tensors, moments: OptimizerState) -> None:
        """Restore what `weights` and `moments` returned; every process passes all of it and keeps its share."""
        ...


def without_head(weights: Tensors) -> Tensors:
    """Return the weights without the LM head, which is tied to the embedding."""
    return {name: value for name, value in weights.items() if not name.endswith("proj_out.weight")}


class Replicated:
    """Every process holds the whole student: a single process, or distributed data parallel.

    Args:
        model: The objective, possibly in a wrapper with the attribute `module`.
        optimizer: Its optimiser.
    """

    steps_in_backward = False

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer):
        inner: Any = getattr(model, "module", model)
        self.objective: DistillationObjective = inner
        self.optimizer = optimizer

    def student(self) -> WhisperForConditionalGeneration:
        """Return the student itself, not a copy."""
        return self.objective.student

    def weights(self) -> Tensors:
        """Return the objective's weights by name, without the tied LM head."""
        return without_head(self.objective.state_dict())

    def moments(self) -> OptimizerState:
        """Return the optimiser's state by parameter number."""
        state: OptimizerState = self.optimizer.state_dict()["state"]
        return state

    def load(self, weights: Tensors, moments: OptimizerState) -> None:
        """Restore weights and optimiser state."""
        # Not strict, because the tied head is missing.
        _, unexpected = self.objective.load_state_dict(weights, strict=False)
        assert not unexpected, unexpected
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})


class FullySharded:
    """PyTorch FSDP2: each process holds a slice of every weight and of its optimiser state.

    Args:
        model: The sharded objective.
        optimizer: Its optimiser.
        whole: An unsharded copy of the objective. `student` fills it with the current weights.
    """

    steps_in_backward = False

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, whole: DistillationObjective):
        self.model, self.optimizer, self.whole = model, optimizer, whole

    def student(self) -> WhisperForConditionalGeneration:
        """Return a whole copy of the student on every process."""
        return _fill(self.whole, self.weights())

    def weights(self) -> Tensors:
        """Gather the objective's weights by name, without the tied LM head."""
        options = gathered.StateDictOptions(full_state_dict=True)
        weights: Tensors = gathered.get_model_state_dict(self.model, options=options)  # type: ignore[assignment]
        return without_head(weights)

    def moments(self) -> OptimizerState:
        """Gather the optimiser's state by parameter name."""
        options = gathered.StateDictOptions(full_state_dict=True)
        optimizer_state: Any = gathered.get_optimizer_state_dict(self.model, self.optimizer, options=options)
        state: OptimizerState = optimizer_state["state"]
        return state

    def load(self, weights: Tensors, moments: OptimizerState) -> None:
        """Restore weights and optimiser state; each process keeps its slices."""
        # Not strict, because the tied head is missing.
        options = gathered.StateDictOptions(full_state_dict=True, strict=False)
        values: dict[str, Any] = {**weights}
        gathered.set_model_state_dict(self.model, values, options=options)
        groups = gathered.get_optimizer_state_dict(self.model, self.optimizer, options=options)["param_groups"]
        optimizer_state: Any = {"state": moments, "param_groups": groups}
        gathered.set_optimizer_state_dict(self.model, self.optimizer, optimizer_state, options=options)


class DeepSpeed:
    """DeepSpeed ZeRO stage 1 or 2: float32 weights and optimiser state are sharded.

    Each process also holds the whole student in the precision of the arithmetic.

    Args:
        engine: DeepSpeed's engine with the objective.
        whole: An unwrapped copy of the objective. `student` fills it with the current weights.
    """

    steps_in_backward = True

    def __init__(self, engine: Any, whole: DistillationObjective):
        self.engine, self.whole = engine, whole

    def student(self) -> WhisperForConditionalGeneration:
        """Return a whole float32 copy of the student on every process."""
        return _fill(self.whole, self.weights())

    def weights(self) -> Tensors:
        """Gather the objective's float32 weights by name, without the tied LM head."""
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {name: value.float() for name, value in self.engine.module.state_dict().items()}
        for name, parameter in self._trained_parameters():
            weights[name] = safe_get_full_fp32_param(parameter)
        return without_head(weights)

    def moments(self) -> OptimizerState:
        """Gather AdamW's state by parameter name."""
        from deepspeed.utils import safe_get_full_optimizer_state as get

        step = max(float(state["step"]) for state in self.engine.optimizer.optimizer.state.values())
        return {
            name: {"step": step, **{key: get(parameter, key) for key in _MOMENTS}}
            for name, parameter in self._trained_parameters()
        }

    def load(self, weights: Tensors, moments: OptimizerState) -> None:
        """Restore weights and optimiser state; each process keeps its shards."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self.engine.module.load_state_dict(weights, strict=False)
        # ZeRO creates the moments in its first step, but a resumed run sets them before. Create them as AdamW does.
        inner, step = self.engine.optimizer.optimizer, torch.as_tensor(next(iter(moments.values()))["step"])
        for flat in (flat for group in inner.param_groups for flat in group["params"]):
            inner.state[flat] = {"step": step.clone()} | {key: torch.zeros_like(flat) for key in _MOMENTS}
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._trained_parameters():
            safe_set_full_fp32_param(parameter, weights[name])
            for key in _MOMENTS:
                safe_set_full_optimizer_state(parameter, moments[name][key], key)

    def _trained_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [item for item in self.engine.module.named_parameters() if item[1].requires_grad]


def prepare_for_training(
    accelerator: Accelerator, section: TrainSection, objective: DistillationObjective, optimizer: torch.optim.Optimizer
) -> tuple[torch.nn.Module, torch.optim.Optimizer, Strategy]:
    """Wrap objective and optimiser as accelerate's configuration says, and choose the strategy for it.

    Raises UserError for options of the recipe or of the configuration that do not work with a sharded student.
    """
    kind = accelerator.distributed_type
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        model, optimizer = accelerator.prepare(objective, optimizer)
        return model, optimizer, Replicated(model, optimizer)
    _check_shardable(section, kind)
    whole = objective.for_student(copy.deepcopy(objective.student)).to(accelerator.device)
    if kind == DistributedType.FSDP:
        if not accelerator.is_fsdp2:
            raise UserError("accelerate configuration: expected fsdp_version: 2, found 1; see recipes/accelerate/")
        model, optimizer = accelerator.prepare(objective, optimizer)
        return model, optimizer, FullySharded(model, optimizer.optimizer, whole)  # type: ignore[attr-defined]
    settings = accelerator.deepspeed_plugin.deepspeed_config
    if (stage := settings["zero_optimization"]["stage"]) > 2:
        raise UserError(
            f"accelerate configuration: expected zero_stage 0 to 2, found {stage}; to shard the weights too, use "
            "recipes/accelerate/fsdp.yaml"
        )
    # DeepSpeed clips gradients and updates the weights itself. It requires a batch size, though nothing depends on it.
    settings |= {"gradient_clipping": section.max_grad_norm, "train_micro_batch_size_per_gpu": 1}
    model, optimizer = accelerator.prepare(objective, optimizer)
    return model, optimizer, DeepSpeed(model, whole)


def _check_shardable(section: TrainSection, kind: DistributedType) -> None:
    """Raise UserError for options that need the whole student in each process."""
    for key, is_set in {
        "ema_decay": section.ema_decay is not None,
        "micro_batch_size": section.micro_batch_size == "auto",
        "optimizer": section.optimizer != "adamw",
        "compile": section.compile,
    }.items():
        if is_set:
            raise UserError(
                f"{section.name}.{key}: {getattr(section, key)} needs the whole student in each process, found "
                f"{kind.value} in the accelerate configuration; use recipes/accelerate/ddp.yaml, or leave it out"
            )


def _fill(whole: DistillationObjective, weights: Tensors) -> WhisperForConditionalGeneration:
    """Load gathered weights into the whole copy and return its student."""
    # Not strict, because the tied head is missing.
    student = {name: value for name, value in weights.items() if name.startswith("student.")}
    whole.load_state_dict(student, strict=False)
    return whole.student
