#!/bin/bash
# A recipe on the nodes of a Slurm allocation:  sbatch --nodes=8 slurm.sh curate_on_ray.yaml
#
# The first node is the head of a Ray cluster, and the run is started there; the others join it, now or later. The store must be a
# path that all nodes see (or s3://...), and Flywheel must be installed on all of them, as in a shared home.
#SBATCH --job-name=flywheel
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

# Who reaches a Ray cluster can run anything on it, and others have jobs on these machines: it takes a token, which is this job's alone.
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
port=${RAY_PORT:-6379} dashboard=${RAY_DASHBOARD_PORT:-8265}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
host=$(getent ahostsv4 "$head" | awk 'NR == 1 {print $1}')
steps=()
trap 'kill "${steps[@]}" 2>/dev/null; wait' EXIT

srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
    ray start --block --head --node-ip-address="$host" --port="$port" --dashboard-port="$dashboard" \
    --disable-usage-stats &
steps+=($!)
until (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; do
    kill -0 "${steps[0]}" || { echo "the head did not start" >&2; exit 1; }
    sleep 1
done
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" \
        ray start --block --address="$host:$port" &
    steps+=($!)
done

# Two minutes before its time is up Slurm sends SIGTERM: what is done is kept, and submitting this again goes on from there.
flywheel run "$@" --executor ray --address "$host:$port" &
run=$!
trap 'kill -TERM "$run"' TERM
while kill -0 "$run" 2>/dev/null; do
    wait "$run" && status=0 || status=$?
done
exit "$status"
