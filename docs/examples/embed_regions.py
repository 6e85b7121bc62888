r"""Embeddings of labelled regions into scikit-learn, beside a floor of k-mers.

    python docs/examples/embed_regions.py --model models:/findna@candidate --bed regions.bed \
        --reference genome.fa.gz

The fourth column of the BED is the label of each region. The cells between ``# %%`` can be run one by one in
an editor that knows them, or in a notebook.
"""

# %% What is asked for.
import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.sources import reference
from trainer.embed import main as embed

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="models:/NAME@ALIAS, or the folder of an export")
parser.add_argument("--bed", required=True, help="regions with their labels in the fourth column")
parser.add_argument("--reference", required=True, help="the genome: FASTA or .2bit")
asked = parser.parse_args()

# %% A vector of each region: the mean over its letters, both strands averaged. The BED's columns come along.
with tempfile.TemporaryDirectory() as folder:
    table = str(Path(folder) / "regions.parquet")
    options = [
        "--model",
        asked.model,
        "--input",
        asked.bed,
        "--reference",
        asked.reference,
        "--output",
        table,
    ]
    if code := embed(options):
        raise SystemExit(code)
    regions = pd.read_parquet(table)
numbers = [column for column in regions if column[:1] == "e" and column[1:].isdigit()]
vectors = regions[numbers].to_numpy()
labels = regions["label"].to_numpy()
print(f"{len(regions):,} regions, {len(numbers)} numbers each, labels {', '.join(sorted(set(labels)))}")

# %% How much of them is one direction? Raw embeddings often are; scikit-learn's scaler takes care of it.
explained = PCA(min(5, *vectors.shape)).fit(vectors).explained_variance_ratio_
print("share of the variance of the first components:", ", ".join(f"{share:.2f}" for share in explained))

# %% The floor: counts of 4-mers of the same letters.
genome = reference.locate(asked.reference).handle
rows = zip(regions["chrom"], regions["start"].astype(int), regions["end"].astype(int), strict=True)
letters = [reference.fetch(genome, *row).decode().upper() for row in rows]
counts = CountVectorizer(analyzer="char", ngram_range=(4, 4), lowercase=False).fit_transform(letters)

# %% Both by the same cross-validation. Neighbours in the genome are alike: leave out contigs where you can.
folds = StratifiedKFold(5, shuffle=True, random_state=0)
for name, features, scaler in (
    ("embeddings", vectors, StandardScaler()),
    ("4-mers", counts, StandardScaler(with_mean=False)),
):
    model = make_pipeline(scaler, LogisticRegression(C=0.1, max_iter=2000))
    scores = cross_val_score(model, features, labels, cv=folds, scoring="matthews_corrcoef")
    print(f"{name}: MCC {np.mean(scores):.3f} ± {np.std(scores):.3f} over {len(scores)} folds")
