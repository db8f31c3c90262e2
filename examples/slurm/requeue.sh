# shellcheck shell=bash
# For the job scripts beside it: run a step, and put the job back into the queue until the run is at its end.

# run_or_requeue SIGNAL COMMAND…  SIGNAL is what makes the ranks of COMMAND (the job's first srun) save and stop; "none"
# where nothing does: the job is then requeued at once and goes on from its last regular checkpoint.
#
#   status of COMMAND          the job
#   0                          is over (requeued if the signal had come: some trainers end with 0 when asked to stop)
#   2                          is over: a mistake in the settings or the data, which another start would repeat
#   75                         is requeued: saved and stopped before the end
#   anything else              is requeued, unless it has been $MAX_RESTARTS times (3): a lost rank or node
run_or_requeue() {
  local signal=$1 status=0 step
  shift
  asked=
  "$@" &
  step=$!
  trap 'pass_on "$signal"' USR1 TERM
  while kill -0 "$step" 2>/dev/null; do # a trapped signal ends `wait`, not the step
    wait "$step" && status=0 || status=$?
  done
  trap - USR1 TERM
  case $status in
    0) [[ -n $asked ]] || return 0 ;;
    2) return 2 ;;
    75) ;;
    *) [[ -n $asked ]] || (( ${SLURM_RESTART_COUNT:-0} < ${MAX_RESTARTS:-3} )) || return "$status" ;;
  esac
  echo "job $SLURM_JOB_ID: status $status${asked:+, asked to stop}: requeued"
  scontrol requeue "$SLURM_JOB_ID"
}

pass_on() {
  asked=yes
  if [[ $1 == none ]]; then
    scontrol requeue "$SLURM_JOB_ID"
  else
    scancel --signal="$1" "$SLURM_JOB_ID.0" || true # the step may just have ended
  fi
}
