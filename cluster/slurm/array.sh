#!/bin/bash
# A job array that protects a collection: each task a part of the identities, into an output of its own.
#   sbatch --array=1-8 cluster/slurm/array.sh run.yaml /scratch/me/protected
# Again for one part (PARTS is the number of all parts, where the array is not whole):
#   sbatch --array=3 --export=ALL,PARTS=8 cluster/slurm/array.sh run.yaml /scratch/me/protected
# docs/setup/slurm.md has what to prepare. DLADIFF names the command, where it is not on PATH.
#SBATCH --job-name=dladiff
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: sbatch --array=1-N $0 RUN.yaml OUTPUT" >&2
    exit 2
fi
part=${SLURM_ARRAY_TASK_ID:?submit it with sbatch --array=1-N}
parts=${PARTS:-${SLURM_ARRAY_TASK_COUNT:?}}

# exec: Slurm's signal before the time limit reaches dladiff itself, which ends in order
exec "${DLADIFF:-dladiff}" protect --config "$1" --shard "$part/$parts" --output "${2%/}/$part-of-$parts"
