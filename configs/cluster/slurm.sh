#!/bin/bash
# A training run under Slurm, from the repository's root:
#   sbatch configs/cluster/slurm.sh --config configs/train/findna.yaml data.uri=s3://… run.dir=s3://…
# The arguments are those of the training command. #SBATCH lines can be overridden: sbatch --nodes=8 … slurm.sh …
#
#SBATCH --job-name=dna-distill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=dna-distill-%j.log
#SBATCH --open-mode=append
# A node that fails does not end the job: the supervisor goes on with those that are left.
#SBATCH --no-kill
# Two minutes before the time limit, and before preemption where the site sends this signal then
# (PreemptParameters=send_user_signal), this script is told; it alone (B:).
#SBATCH --signal=B:TERM@120
#SBATCH --requeue

set -euo pipefail

# Secrets (AWS_…, MLFLOW_…) come from the environment, which Slurm passes on, or from a file that you alone can read.
if [[ -r ~/.dna-distill.env ]]; then
    set -a
    # shellcheck source=/dev/null
    source ~/.dna-distill.env
    set +a
fi
if [[ -r .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi

hosts=$(mktemp)
trap 'rm -f "$hosts"' EXIT
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=${SLURM_GPUS_ON_NODE:-1}/" > "$hosts"

# One agent per node, each a step of this job: no ssh, and Slurm ends whatever a step leaves behind. --overlap, since
# this script's own step holds the first node; no binding, since a step is one task to Slurm and the agent starts many.
agent='srun --overlap --no-kill --nodes=1 --ntasks=1 --cpu-bind=none --unbuffered --nodelist={host}'

# grace_s: the ranks save within the two minutes that Slurm gives.
python -m cluster train --config configs/cluster/hosts.yaml launch.hostfile="$hosts" \
    launch.remote="$agent" grace_s=100 -- "$@" &
supervisor=$!

trap 'told=yes; kill -TERM "$supervisor" 2>/dev/null || true' TERM
told=yes
while [[ $told ]]; do
    told=
    code=0
    wait "$supervisor" || code=$?
    # 143 with the signal: `wait` was ended by it, long before the supervisor, which has the ranks save first.
    [[ $code -eq 143 ]] || break
done

# 75: saved, to be continued. A job that was cancelled is no longer RUNNING, and is left alone.
if [[ $code -eq 75 && $(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") == RUNNING ]]; then
    scontrol requeue "$SLURM_JOB_ID" || echo "not requeued: submit it again, and it goes on where it stopped" >&2
fi
exit "$code"
