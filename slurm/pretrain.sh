#!/bin/bash
@@{directives}

# Trains on all nodes. Told to stop (SLURM sends USR1 to this script before the time limit), the ranks save and exit with 75, and the job
# goes back into the queue, where this same script resumes it. Written by `bamboo slurm`; edit it freely and hand it to sbatch.

set -uo pipefail
cd @@{folder} || exit 1
state=@@{logs}/$SLURM_JOB_ID  # what one attempt leaves to the next
attempt=$state/attempt-${SLURM_RESTART_COUNT:-0}
mkdir -p "$attempt" || exit 1

export BAMBOO_ENDED_FILE=$state/ended.json  # rank 0 writes it last: which step, and finished or the signal that stopped the run
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
export PET_LOG_DIR=$attempt  # torchrun's --log-dir; each node takes a folder of its own below it
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else restarted ranks read the addresses of dead ones, and hang (pytorch issues 135712, 167288)
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
@@{environment}
@@{setup}

say() { printf '%(%T)T %s\n' -1 "$*"; }
finish() {  # code, reason
  say "$2"
  printf '%s\n' "$1" "$2" > "$state/outcome"
  exit "$1"
}

asked=
step=
stop() {
  asked=$1
  say "$1: the ranks are to save and stop"
  if [[ -n $step ]]; then kill -USR1 "$step"; fi  # srun passes it on to every process of the step
}
trap 'stop USR1' USR1
trap 'asked=TERM; say "TERM: SLURM ends the job, and has told the ranks itself"' TERM

host=${BAMBOO_RDZV_HOST:-$(hostname)}  # this script runs on the job's first node
port=$((20000 + SLURM_JOB_ID % 10000))
while (exec 3<> "/dev/tcp/$host/$port") 2> /dev/null; do port=$((port + 1)); done
rm -f "$BAMBOO_ENDED_FILE" "$state/outcome"

command=(
  @@{command}
)
say "job $SLURM_JOB_ID, attempt ${SLURM_RESTART_COUNT:-0}: @@{nodes} nodes ($SLURM_JOB_NODELIST), rendezvous at $host:$port, logs in $attempt"
if [[ -z $asked ]]; then
  srun @@{srun} bash -c 'export PET_LOG_DIR=$PET_LOG_DIR/node-$SLURM_NODEID; exec "$@"' - "${command[@]}" &
  step=$!
fi
code=75
while [[ -n $step ]]; do
  wait "$step"
  code=$?
  if ! kill -0 "$step" 2> /dev/null; then break; fi  # a trap interrupts wait; then there is more to wait for
done

if ((code == 0)) || grep -qs '"reason": "finished"' "$BAMBOO_ENDED_FILE"; then finish 0 "finished"; fi

if [[ -e $BAMBOO_ENDED_FILE || -n $asked ]]; then
  reached=$(grep -o '"step": [0-9]*' "$BAMBOO_ENDED_FILE" 2> /dev/null | tr -dc 0-9)
  last=-1 idle=0
  if [[ -e $state/progress ]]; then read -r last idle < "$state/progress"; fi
  if [[ -n $reached ]] && ((reached > last)); then last=$reached idle=0; else idle=$((idle + 1)); fi
  echo "$last $idle" > "$state/progress"
  where="stopped after step ${reached:-unknown (nothing was saved)}"
  if ((idle > @@{max_idle})); then finish 75 "$where, for the $idle. time in a row without progress; not queued again"; fi
  if [[ @@{requeue} == no ]]; then finish 75 "$where; submit the same command to go on"; fi
  status=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format=%T)
  if [[ $status != RUNNING ]]; then finish 75 "$where; SLURM has the job as ${status:-gone}, and decides what comes of it"; fi
  say "$where; back into the queue"
  scontrol requeue "$SLURM_JOB_ID" || finish 75 "$where; SLURM does not queue it again"
  exit 75
fi

reasons=$(grep -rhE --include=stderr.log '^(bamboo [a-z_]+:|[A-Za-z_.]*(Error|Exception)\b|.*(Killed|Segmentation fault))' "$attempt" | sort -u | tail -n 8)
say "what the ranks said last:"
printf '%s\n' "${reasons:-nothing that looks like an error; see $attempt}"
finish "$code" "failed with exit code $code: ${reasons%%$'\n'*}"
