#!/bin/bash
@@{directives}

# Trains on all nodes. Told to stop (SLURM sends USR1 to this script before the time limit), the ranks save and exit with 75, and the job
# goes back into the queue, where this same script resumes it. Written by `bamboo slurm`; edit it freely and hand it to sbatch.

set -uo pipefail
logs=@@{logs}
restarts=${SLURM_RESTART_COUNT:-0}
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}  # in an array, SLURM_JOB_ID alone may mean all of it

say() { printf '%(%F %T)T %s\n' -1 "$*"; }
finish() {  # code, reason
  say "$2"
  if [[ -d ${state-} ]]; then printf '%s\n' "$1" "$2" > "$state/outcome"; fi
  exit "$1"
}
fail() { finish "$?" "$1"; }  # with the code of what came before; its words must run no command
persist() {  # a controller with much to do does not always answer at once
  local pause
  for pause in 2 5 10 0; do
    if "$@"; then return; fi
    sleep "$pause"
  done
  return 1
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

# What one attempt leaves to the next lies in $state.
@@{state}
if ((restarts == 0)); then rm -f "$state/progress"; fi
attempt=$state/attempt-0
while [[ -e $attempt ]]; do attempt=$state/attempt-$((${attempt##*-} + 1)); done
mkdir "$attempt" || finish 1 "the folder of logs cannot be written"
log_begin=$(($(stat -c %s "$logs/$job.log" 2> /dev/null || echo 0) + 1))
cd @@{folder} || fail "the working folder is not to be found on ${SLURMD_NODENAME:-this node}"

export BAMBOO_ENDED_FILE=$state/ended.json  # rank 0 writes it last: which step, and finished or the signal that stopped the run
export PYTHONSAFEPATH=1  # a folder here by the name of a package does not hide it
export PYTHONUNBUFFERED=1
export PET_LOG_DIR=$attempt  # torchrun's --log-dir; each node takes a folder of its own below it
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # else restarted ranks read the addresses of dead ones, and hang (pytorch issues 135712, 167288)
for limit in l n; do ulimit -S "-$limit" "$(ulimit -H "-$limit")" 2> /dev/null; done  # sbatch brings a login node's; RDMA locks memory
rm -f "$BAMBOO_ENDED_FILE" "$state/outcome"
@@{setup}
@@{environment}
@@{interpreter}

# Nodes know one another by SLURM's names where these resolve; what hostname says is only then a better guess. This is the job's first node.
host=${SLURMD_NODENAME:-}
getent hosts "$host" > /dev/null || host=$(uname -n)
host=${BAMBOO_RDZV_HOST:-$host}
port=$((20000 + SLURM_JOB_ID % 10000))
while (exec 3<> "/dev/tcp/$host/$port") 2> /dev/null; do port=$((port + 1)); done

# On each node: its own name, as torchrun's own guess (getfqdn) is localhost on many; who holds the rendezvous; and five minutes for
# the first node to open it, as images are not unpacked equally fast.
on_node='
  name=${SLURMD_NODENAME:-}
  getent hosts "$name" > /dev/null || name=$(uname -n)
  export PET_LOCAL_ADDR=$name PET_LOG_DIR=$PET_LOG_DIR/node-$SLURM_NODEID
  export PET_RDZV_CONF=is_host=$((SLURM_NODEID == 0)),read_timeout=300
  exec "$@"'
command=(
  @@{command}
)
say "job $job, attempt ${attempt##*-}: @@{nodes} nodes ($SLURM_JOB_NODELIST), rendezvous at $host:$port, logs in $attempt"
if [[ -z $asked ]]; then
  srun @@{srun} bash -c "$on_node" - "${command[@]}" &
  step=$!
fi
code=75
if [[ -n $step ]]; then
  while kill -0 "$step" 2> /dev/null; do wait "$step"; done  # a trap interrupts wait; then there is more to wait for
  wait "$step"
  code=$?
fi

if ((code == 0)) || grep -qs '"reason": "finished"' "$BAMBOO_ENDED_FILE"; then finish 0 "finished"; fi

dead=$(sinfo --noheader --dead --nodes="$SLURM_JOB_NODELIST" --format=%N 2> /dev/null)
if [[ -e $BAMBOO_ENDED_FILE || -n $asked || -n $dead ]]; then
  reached=$(grep -o '"step": [0-9]*' "$BAMBOO_ENDED_FILE" 2> /dev/null | tr -dc 0-9)
  last=-1 idle=0
  if [[ -e $state/progress ]]; then read -r last idle < "$state/progress"; fi
  if [[ -n $reached ]] && ((reached > last)); then last=$reached idle=0; else idle=$((idle + 1)); fi
  echo "$last $idle" > "$state/progress"
  where="stopped after step ${reached:-unknown (nothing was saved)}${dead:+, as $dead does not answer}"
  if ((idle > @@{max_idle})); then finish 75 "$where, for the $idle. time in a row without progress; not queued again"; fi
  if [[ @@{requeue} == no ]]; then finish 75 "$where; submit the same command to go on"; fi
  status=$(persist squeue --noheader --jobs "$job" --format=%T)
  if [[ $status != RUNNING ]] && [[ -n $status || $asked == TERM ]]; then
    finish 75 "$where; SLURM has the job as ${status:-gone}, and decides what comes of it"
  fi
  say "$where; back into the queue"
  trap '' TERM  # SLURM now ends this script, too
  persist scontrol requeue "$job" || finish 75 "$where; SLURM does not queue it again"
  exit 75
fi

# What the ranks said, beginning with the one that fell silent first, then what SLURM and the launchers said of this attempt.
words='^(bamboo [a-z_]+:|[A-Za-z_.]*(Error|Exception)\b|Fatal Python error|.*(Killed|Segmentation fault))'
reasons=$({
  find "$attempt" -name stderr.log -printf '%T@ %p\0' | sort -zn | sed -z 's/^[^ ]* //' | xargs -0r grep -hE "$words"
  tail -c "+$log_begin" "$logs/$job.log" 2> /dev/null | grep -E '^(bamboo [a-z_]+:|slurmstepd: error: .*(oom|OOM|Killed))'
} | awk '!seen[$0]++' | head -n 8)
say "what the ranks said, the first to end first:"
printf '%s\n' "${reasons:-nothing that looks like an error; see $attempt}"
finish "$code" "failed with exit code $code: ${reasons%%$'\n'*}"
