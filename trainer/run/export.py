"""The export of a run: the teacher as four small files, and the card that says what it is."""

from trainer.core.collectives import Group
from trainer.models import pretrained
from trainer.run import run_status
from trainer.run.config import TrainConfig
from trainer.run.train_state import TrainState


def export_to_run_dir(config: TrainConfig, state: TrainState, group: Group) -> None:
    """Rank 0 writes the teacher as files to run.dir, and the note that the run is finished; a collective."""
    tensors = pretrained.split_tensors(state.teacher.full_tensors(), keep=group.rank == 0)
    if group.rank == 0:
        pretrained.write(config.run.dir, state.teacher.module, tensors, card=_card(config, state))
        run_status.write_finished(config.run.dir, steps=config.train.steps, delivered=False)


def _card(config: TrainConfig, state: TrainState) -> str:
    """The model card: README.md of the export."""
    losses = ", ".join(f"{name} {weight:g}" for name, weight in config.loss.weights().items())
    first, *later = config.data.length
    lengths = ", ".join(
        [f"{first.length} bp", *(f"from step {part.from_step} on {part.length} bp" for part in later)]
    )
    lines = [
        "---",
        "library_name: dna-distill",
        "tags: [dna, self-distillation]",
        "---",
        f"# {config.run.name}",
        "",
        "DNA encoder pretrained by self-distillation: the teacher (moving average of the student) after "
        f"{state.step} steps of",
        f"{config.train.global_batch} windows of {lengths}. Losses and weights: {losses}. "
        f"Seed {config.run.seed}.",
        "",
        "Input: codes A 0, C 1, G 2, T 3, N 4, MASK 5, CLS 6, PAD 7. `model.safetensors` holds backbone and "
        "nucleotide head,",
        "`heads.safetensors` the projection heads that only pretraining uses. Weights fit the wiring in "
        "`config.json` alone.",
    ]
    return "\n".join(lines) + "\n"
