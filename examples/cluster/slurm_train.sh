#!/bin/bash
# A recipe whose training several nodes share:  sbatch --nodes=4 --gpus-per-node=8 slurm_train.sh train.yaml
#
# torchrun starts a process for each GPU of each node. The first one of the first node runs the recipe, the others take part in each stage
# that is shared. The store must be a path that all nodes see (or s3://...), and Flywheel must be installed on all of them, as in a shared
# home.
#SBATCH --job-name=flywheel-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export head=${nodes[0]} port=${MASTER_PORT:-29500}
# Where a node's own name leads to 127.0.0.1, say which network joins them: export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0

# Two minutes before its time is up Slurm sends SIGTERM: what is done is kept, and submitting this again goes on from there.
srun bash -c '
    exec torchrun --nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
        --master-addr="$head" --master-port="$port" -m flywheel run "$@"
' flywheel "$@"
