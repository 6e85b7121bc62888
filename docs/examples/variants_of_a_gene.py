r"""Scores of the variants of a gene, with a picture: which changes does the model find unlikely, and where?

    python docs/examples/variants_of_a_gene.py --model models:/findna@candidate --reference genome.fa.gz \
        --region chr2:1200000-1203000 --exons exons.bed --output gene.png

Every third letter of the region is changed to each other base. The cells between ``# %%`` can be run one by
one in an editor that knows them, or in a notebook.
"""

# %% What is asked for.
import argparse

import matplotlib.pyplot as plt
import numpy as np

from data_prep.sources import bed, reference
from trainer import load_model, score_variants

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="models:/NAME@ALIAS, or the folder of an export")
parser.add_argument("--reference", required=True, help="the genome: FASTA or .2bit")
parser.add_argument("--region", required=True, help="CONTIG:START-END, from 0, the end not included")
parser.add_argument("--exons", help="a BED of its exons, to compare them with what lies between")
parser.add_argument("--output", required=True, help="PNG to write")
parser.add_argument("--every", type=int, default=3, help="of so many letters one is changed")
parser.add_argument("--length", type=int, default=1000, help="letters of the window around a variant")
asked = parser.parse_args()
contig, _, span = asked.region.rpartition(":")
start, end = map(int, span.replace(",", "").split("-"))

# %% The variants: all three changes of some letters. VCF counts from 1.
letters = reference.fetch(reference.locate(asked.reference).handle, contig, start, end).decode().upper()
variants = [
    (contig, start + place + 1, letters[place], alternate)
    for place in range(0, len(letters), asked.every)
    for alternate in "ACGT"
    if letters[place] in "ACGT" and alternate != letters[place]
]
print(f"{len(variants):,} variants of {contig}:{start:,}-{end:,}")

# %% llr is log p(alternate) - log p(reference): below 0 where the model finds the change unlikely.
scores = score_variants(load_model(asked.model), asked.reference, variants, length=asked.length)
assert (scores["status"] == "ok").all(), scores["status"].value_counts()
mean = scores.groupby("pos")["llr"].mean()

# %% Are exons less tolerant than what lies between them?
exons = [line for line in bed.read_lines(asked.exons) if line.contig == contig] if asked.exons else []
is_exon = np.array([any(exon.start < pos <= exon.end for exon in exons) for pos in mean.index], bool)
for name, part in (("exons", mean[is_exon]), ("between", mean[~is_exon])):
    if len(part):
        print(f"{name}: mean llr {part.mean():.3f} over {len(part):,} places")

# %% The picture.
figure, (upper, lower) = plt.subplots(2, 1, figsize=(10, 4), sharex=True, height_ratios=[5, 1])
upper.scatter(scores["pos"], scores["llr"], s=4, alpha=0.4, color="#1f5fa8", label="each change")
upper.plot(
    mean.index, mean.rolling(9, center=True, min_periods=1).mean(), color="#d1661b", label="mean of 9 places"
)
upper.set_ylabel("llr")
upper.legend(fontsize=8, frameon=False)
for exon in exons:
    lower.axvspan(exon.start, exon.end, color="#2a8c5a")
lower.set_yticks([])
lower.set_ylabel("exons")
lower.set_xlim(start, end)
lower.set_xlabel(contig)
figure.savefig(asked.output, dpi=110, bbox_inches="tight")
print(f"{asked.output}: every change of {len(mean):,} letters")
