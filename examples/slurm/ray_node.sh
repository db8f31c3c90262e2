#!/usr/bin/env bash
# What nemo_rl.sbatch runs on every node: ray_node.sh HEAD PORT LATE DRIVER…
#
# HEAD starts the driver when all nodes have joined; the other nodes stay until it is gone. A driver that ends well after
# LATE seconds has stopped for the clock (status 75), unless it was just done: a start from the end costs minutes.
set -euo pipefail
head=$1 port=$2 late=$3
shift 3

if [[ $SLURMD_NODENAME != "$head" ]]; then
  until ray start --address="$head:$port" --disable-usage-stats; do
    (( SECONDS < 600 )) || exit 1
    sleep 5
  done
  while ray status --address="$head:$port" >/dev/null 2>&1; do sleep 15; done
  exit 0
fi

nodes() { python -c 'import ray; ray.init("auto", log_to_driver=False); print(sum(n["Alive"] for n in ray.nodes()))'; }

ray start --head --port="$port" --disable-usage-stats
until (( $(nodes) == SLURM_JOB_NUM_NODES )); do
  (( SECONDS < 900 )) || exit 1
  sleep 5
done
status=0
"$@" || status=$?
ray stop
if (( status == 0 && SECONDS >= late )); then exit 75; fi
exit "$status"
