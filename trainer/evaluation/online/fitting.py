"""What is fitted to the teacher's frozen embeddings of a task's rows, and the floor on the same rows; all is
scored on dev.

Shapes: N rows of train, M of dev, F features.
"""

from collections.abc import Mapping

from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler, normalize

from trainer.evaluation.online.messages import Scores
from trainer.evaluation.online.rows import OnlineTask
from trainer.evaluation.tasks.fitting.linear import fit_linear, fit_probe, kmer_counts, onehot_letters
from trainer.evaluation.tasks.fitting.probe_features import ProbeFeatures
from trainer.evaluation.tasks.kinds.kind import Array

NEIGHBOURS = 20


def floor_of(task: OnlineTask) -> float:
    """The score of the better of k-mers and letters by position, fitted as modes ``kmer`` and ``onehot``
    are."""
    config, positions = task.config, max(len(letters) for letters in task.train.letters)
    fitted = [
        fit_linear(
            task.train,
            task.dev,
            features=lambda split: kmer_counts(split.letters, k=config.kmer.k),
            kind=task.kind,
            grid=config.kmer.C,
            seed=0,
        ),
        fit_linear(
            task.train,
            task.dev,
            features=lambda split: onehot_letters(split.letters, length=positions),
            kind=task.kind,
            grid=config.onehot.C,
            seed=0,
        ),
    ]
    return max(task.kind.main_score(task.dev.truth_N, model.dev_prediction) for model in fitted)


def scores_of(task: OnlineTask, embeddings: Mapping[ProbeFeatures, Array], *, floor: float) -> Scores:
    """What the embeddings tell of the task, beside its ``floor``: of each kind [N, F], the rows of train and
    then dev, as TaskRows has them.

    The probe is that of mode ``probe``. Neighbours are by the angle between vectors of the first kind that
    are standardised as the probe's are; the prediction is the mean of what the NEIGHBOURS nearest rows of
    train say.
    """
    rows = len(task.train)
    features = {
        task.train: {read: vectors_NF[:rows] for read, vectors_NF in embeddings.items()},
        task.dev: {read: vectors_NF[rows:] for read, vectors_NF in embeddings.items()},
    }
    probe = fit_probe(
        task.train, task.dev, features=features.__getitem__, kind=task.kind, grid=task.config.probe.C, seed=0
    )
    first = next(iter(embeddings))
    train_NF, dev_MF = features[task.train][first], features[task.dev][first]
    scaler = StandardScaler().fit(train_NF)
    neighbours = KNeighborsRegressor(min(NEIGHBOURS, len(task.train)), algorithm="brute")
    neighbours.fit(normalize(scaler.transform(train_NF)), task.kind.sure(task.train.truth_N))
    said = neighbours.predict(normalize(scaler.transform(dev_MF)))
    truth_M = task.dev.truth_N
    return Scores(
        task.kind.main_score(truth_M, probe.dev_prediction), task.kind.main_score(truth_M, said), floor
    )
