#!/bin/bash
# Two machines of 8 GPUs by Slurm: a task is a rank.
#
#   sbatch configs/launch/slurm.sh grpo --config configs/rec/grpo.yaml
#
# Five minutes before the job's time is up, Slurm warns all ranks, which end the step with a checkpoint. The same line
# goes on from there. Output, data and model lie in folders that all machines share.
#SBATCH --job-name=vlm-r1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=USR1@300
set -euo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a machine should not meet at one port.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# srun says in each task which one it is.
rank='
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
exec vlm-r1 "$@"
'
# A rank that fails tells the others, which leave by themselves; after a warning each leaves when its part is saved.
srun --kill-on-bad-exit=0 bash -c "$rank" vlm-r1 "$@"
