"""``dna-distill COMMAND …`` (also ``python -m dna_distill``): every command under one name.

A command is imported when it is called, so that each runs where only its own dependencies are installed.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {  # name -> module with main(arguments) -> exit code, what it does
    "prep": ("data_prep.__main__", "genomes to shards: build, verify, stats, leakage, export, synth"),
    "train": ("trainer.main", "pretraining in this process; for several ranks: deepspeed, or cluster train"),
    "finetune": ("trainer.finetune", "a registered model on a labelled task"),
    "embed": ("trainer.embed", "embeddings of the records of a FASTA"),
    "variants": ("trainer.variants", "scores of the variants of a VCF, or of all substitutions of regions"),
    "predict": ("trainer.predict", "sequences through a fine-tuned model"),
    "export": ("trainer.export", "a model as a folder that transformers and trainer.load_model open"),
    "report": ("trainer.report.__main__", "a run as one HTML page with pictures and tables"),
    "demo": ("trainer.demo", "the whole main job in minutes; from the root of the repository"),
    "cluster": (
        "cluster.__main__",
        "train, finetune, study: on one machine or many; doctor: what each can do",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the command that ``arguments`` (default: the command line's) name."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in COMMANDS:
        return int(import_module(COMMANDS[name][0]).main(rest[:-1]))
    asked = name in ("-h", "--help")
    if name and not asked:
        print(f"error: unknown command {name!r}", file=sys.stderr)
    text = "\n".join(f"  {command:<9} {purpose}" for command, (_, purpose) in COMMANDS.items())
    print(
        f"usage: dna-distill COMMAND …\n\n{text}\n\ndna-distill COMMAND --help lists its options.",
        file=sys.stdout if asked else sys.stderr,
    )
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
