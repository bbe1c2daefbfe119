"""How many utterances a process computes at a time; gradients of a step's micro-batches are accumulated."""

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from data_prep.labels.label_store import Label
from distill.data.examples import ExampleSampler
from distill.data.training_batches import Batch, Collator
from distill.training.assembly import TrainingSetup
from eval.runtimes.process_memory import out_of_memory
from recipes.core.errors import RunError
from recipes.core.logs import log
from recipes.schema.train_section import TrainSection


def choose_micro_batch_size(
    section: TrainSection, accelerator: Accelerator, setup: TrainingSetup, labels: Sequence[Label],
    sampler: ExampleSampler, collator: Collator,
) -> int:  # fmt: skip
    """Return the number of utterances in one forward pass.

    With `micro_batch_size: auto` the process's share of a step is halved until a forward and backward pass of the
    longest labels fits in the memory of every process. Raises RunError if not even one utterance fits.
    """
    share = -(-section.batch_size // accelerator.num_processes)
    if section.micro_batch_size != "auto":
        return min(section.micro_batch_size or share, share)
    longest = sorted(labels, key=lambda label: -len(label.plain.tokens))[:share]
    examples, size = [sampler(label, None, 0) for label in longest], share
    while not _fits(accelerator, setup, collator(examples[:size])):
        if size == 1:
            raise RunError(
                f"{section.name}.micro_batch_size: expected memory for at least one utterance, found too little; free "
                f"memory, or set {section.name}.gradient_checkpointing=true"
            )
        size //= 2
    smallest = int(min(gather_object([size])))
    if accelerator.is_main_process and smallest < share:
        log.info(f"{section.name}: computing {smallest} utterances at a time, as many as fit in memory")
    return smallest


def _fits(accelerator: Accelerator, setup: TrainingSetup, batch: Batch) -> bool:
    try:
        with accelerator.autocast():
            sums = setup.objective.train()(batch.to(accelerator.device))
        sums[0].backward()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        setup.optimizer.zero_grad()
    return True
