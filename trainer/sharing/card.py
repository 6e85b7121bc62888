"""The model card: README.md of an export, for who uses the model and for who reviews it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from configs import redact
from trainer.sharing.card_data import data
from trainer.sharing.card_facts import CardFacts, ComputeFacts
from trainer.tracking import markdown
from trainer.tracking.version_notes import with_section
from trainer.tracking.version_text import ACCURACY, MAJORITY, MARKOV, bp_text

LABELLED = "Labelled tasks"  # a heading
_SHARED = "library_name: transformers\n"
_WEIGHT = re.compile(r"loss\.(\w+)\.weight")
_SETTINGS = {  # key of the training config -> what the card calls it
    "data.length": "window, bp",
    "data.length_by_step": "window by step",
    "data.regions.shares": "where windows are centred, by BED file",
    "train.global_batch": "windows in a batch",
    "train.steps": "steps of the whole run",
    "views.masking.rate": "share of letters that are scored",
    "views.masking.mask_share": "share of these that are masked",
    "views.masking.random_share": "share of these that are random",
    "ema.momentum": "momentum of the teacher, at the start",
    "ema.momentum_end": "momentum of the teacher, at the end",
    "train.lr": "peak learning rate",
    "train.weight_decay": "weight decay",
    "train.precision": "precision",
    "run.seed": "seed",
}
_NO_SIZE = {
    "architectures",
    "auto_map",
    "format_version",
    "model_type",
    "num_labels",
    "pad_token_id",
    "torch_dtype",
    "vocab",
    "wiring_sha256",
}
_FOR_TRANSFORMERS = """```python
from transformers import AutoModel, AutoTokenizer

folder = "./"  # where this file lies, or the model's name on a hub
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
encoder = AutoModel.from_pretrained(folder, trust_remote_code=True)
batch = tokenizer(["ACGTTGCATTAGC", "gattaca"], padding=True, return_tensors="pt")
vectors = encoder(**batch).pooler_output  # one of each sequence; last_hidden_state has one of each letter
```

`AutoModelForMaskedLM` gives logits of A, C, G, T at each letter. `AutoModelForSequenceClassification`
adds a new head on the mean over the letters. `trust_remote_code=True` lets transformers run the Python
files of this folder; read them first if you have it from somebody else.
"""
_FOR_OURS = """```python
from trainer import embed_sequences, load_model

model = load_model("./")  # a folder, s3://…, or models:/NAME/VERSION
vectors = embed_sequences(model, ["ACGTTGCATTAGC", "gattaca"])  # averaged over both strands
```
"""
_USE = (
    "Embeddings of DNA sequences, fine-tuning on labelled sequences, and the probability of a base at a "
    "place given the letters around it."
)
_CITATION = """The method is FinDNA: Yu et al., *Neural Networks* 183, 2025. The code is dna-distill; its
`CITATION.cff` says how to cite it.
"""


def render(facts: CardFacts) -> str:
    """The card in markdown, with the front matter that hubs read. No secret of a URI is in it."""
    sections = "\n".join(f"## {heading}\n{text.strip()}\n" for heading, text in _sections(facts))
    return str(redact(f"{_front_matter(facts)}\n# {facts.name}\n\n{_what(facts)}\n\n{sections}"))


def is_card(text: str) -> bool:
    """Whether ``render`` made ``text`` for an export that transformers opens."""
    return text.startswith("---\n") and _SHARED in text.partition("\n---\n")[0] + "\n"


def with_labelled(text: str, results: str) -> str:
    """The card ``text`` with other ``results`` of labelled tasks, in markdown."""
    return with_section(text, LABELLED, str(redact(results)))


def with_licence(text: str, licence: str) -> str:
    """The card ``text``, whose front matter and section say that the weights are under ``licence``."""
    head, end, rest = text.partition("\n---\n")
    lines = [line for line in head.split("\n") if not line.startswith("license:")]
    lines.insert(1, f"license: {licence}")
    return with_section("\n".join(lines) + end + rest, "Licence", _licence(licence))


def _front_matter(facts: CardFacts) -> str:
    opens = "auto_map" in facts.config
    lines = [
        "---",
        *([f"license: {facts.licence}"] if facts.licence else []),
        *([_SHARED.strip(), "pipeline_tag: fill-mask"] if opens else ["library_name: dna-distill"]),
        "tags:",
        *(f"- {tag}" for tag in ("dna", "genomics", "self-distillation", facts.config["model_type"])),
        "---",
    ]
    return "\n".join(lines) + "\n"


def _sections(facts: CardFacts) -> Iterator[tuple[str, str]]:
    yield "How to load it", _how_to_load(facts)
    yield "Intended use", _USE
    yield "Limits", _limits(facts)
    yield "Training data", data(facts.data)
    yield "Settings", _settings(facts)
    yield "Compute", _compute(facts.compute)
    yield "Held-out figures", _held_out(facts.held_out)
    yield LABELLED, facts.labelled or _no_results(facts)
    yield "Citation", _CITATION
    yield "Licence", _licence(facts.licence)


def _what(facts: CardFacts) -> str:
    when = "a training" if facts.step is None else f"{facts.step:,} steps of training"
    return (
        f"A DNA encoder ({facts.config['model_type']}, {facts.parameters:,} parameters), pretrained by "
        f"self-distillation: the teacher, a moving average of the student, after {when}. It reads letters "
        "and gives a vector of each letter and of each sequence, and the probabilities of masked letters."
        + (f" It is `{facts.uri}`." if facts.uri else "")
    )


def _how_to_load(facts: CardFacts) -> str:
    if "auto_map" in facts.config:
        theirs = f"With transformers, without any other code:\n{_FOR_TRANSFORMERS}"
    else:
        theirs = "transformers does not open it: its backbone has no file for that."
    return (
        f"{theirs}\nWith dna-distill:\n{_FOR_OURS}\nTokens: A C G T N [MASK] [CLS] [PAD] are 0 to 7. Lower "
        "case counts as upper case, U is T, other IUPAC letters are N. Padding stands behind the letters and "
        "changes nothing. `model.safetensors` holds backbone and nucleotide head, `heads.safetensors` the "
        "projection heads that only pretraining uses."
    )


def _limits(facts: CardFacts) -> str:
    length = facts.settings.get("data.length")
    seen = f"windows of {length} bp" if length else "windows of a length that is not known"
    names = [source.name for each in facts.data for source in each.sources]
    genomes = f"from {', '.join(names)}" if names else "from genomes that are not known here"
    return (
        f"- It was trained on {seen} {genomes}. How it does on longer sequences, or on other species, is not "
        "measured by the figures below.\n"
        "- It reads one strand. A vector that does not depend on the strand is the mean of both strands' "
        "(`embed_sequences` does that).\n"
        "- It has seen no labels of function: probabilities of letters and distances of vectors are no "
        "effects of variants, unless they were compared with measured ones.\n"
        "- Not for clinical decisions."
    )


def _settings(facts: CardFacts) -> str:
    sizes = {key: value for key, value in sorted(facts.config.items()) if key not in _NO_SIZE}
    rows = [("backbone", str(facts.config["model_type"])), *((k, _value(v)) for k, v in sizes.items())]
    rows.append(("wiring, sha256", str(facts.config.get("wiring_sha256", "not known"))))
    if not facts.settings:
        return f"{_table(('size', 'value'), rows)}\n\nThe settings of the training are not known here."
    rows += [("losses and their weights", losses(facts.settings) or "not known")]
    rows += [(name, _value(facts.settings[key])) for key, name in _SETTINGS.items() if key in facts.settings]
    rows += [("commit of the code", facts.code)] if facts.code else []
    return _table(("setting", "value"), rows)


def losses(settings: Mapping[str, Any]) -> str:
    """The losses in use and their weights, of a training config by dotted keys."""
    weights = {found[1]: float(value) for key, value in settings.items() if (found := _WEIGHT.fullmatch(key))}
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)


def _compute(compute: ComputeFacts) -> str:
    rows = [
        ("letters read", "" if compute.bp is None else f"{bp_text(compute.bp)} ({compute.bp:,} bp)"),
        ("FLOPs, by formula", "" if compute.flops is None else f"{compute.flops:.2e}"),
        ("devices", compute.devices),
        ("time since it began, with all pauses", "" if compute.wall_s is None else _time(compute.wall_s)),
    ]
    return _table(("", "value"), [(name, value or "not known") for name, value in rows])


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _held_out(metrics: Mapping[str, float]) -> str:
    rows = [
        (name, f"{metrics[key]:.4f}")
        for key, name in (
            (ACCURACY, "**this model**"),
            (MARKOV, "Markov model of the 4 letters on either side"),
            (MAJORITY, "always the most frequent letter"),
        )
        if key in metrics
    ]
    if not rows:
        return "It was not validated at this step, as far as is known here."
    scored = metrics.get("val/scored_positions")
    of = f"{scored:,.0f} masked letters" if scored else "Masked letters"
    loss = metrics.get("val/mlm_loss")
    return (
        f"{of} of windows that were held out of training; each scored letter is hidden.\n\n"
        + _table(("who predicts", "share that is right"), rows)
        + (f"\n\nCross entropy {loss:.4f} nats a letter." if loss is not None else "")
    )


def _no_results(facts: CardFacts) -> str:
    model = facts.uri or "models:/NAME/VERSION"
    return (
        "No results were known when this card was written. Once the version was fine-tuned, this writes it "
        f"again with them:\n```\npython -m trainer.finetune --model {model} --task configs/tasks/NAME.yaml\n"
        f"python -m trainer.export --model {model} --output FOLDER\n```"
    )


def _licence(licence: str) -> str:
    files = "The Python files of this folder are part of dna-distill, under Apache-2.0."
    if licence:
        return f"The weights: {licence}. {files}"
    return (
        "Nobody has said under which licence the weights are. Ask who trained them; `python -m "
        f"trainer.export --licence` writes it here. The licences of the data stand above. {files}"
    )


def _value(value: Any) -> str:
    """``value`` as a table has it; MLflow gives lists as text."""
    parsed = yaml.safe_load(value) if isinstance(value, str) and value.startswith("[") else value
    if not isinstance(parsed, list):
        return str(value)
    return ", ".join(
        f"{each['length']} from step {each['from_step']}"
        if isinstance(each, dict) and each.keys() == {"from_step", "length"}
        else str(each)
        for each in parsed
    )


def _table(headings: tuple[str, ...], rows: list[tuple[str, str]]) -> str:
    return markdown.table(headings, rows, gap="")
