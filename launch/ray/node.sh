# shellcheck shell=bash
# One Ray node that belongs to one run: its folder, its ports, its end. Sourced by head.sh and worker.sh.

say() { echo "${0##*/}: $*" >&2; }
die() { say "${@:2}"; exit "$1"; }

set -m  # a process group for every child: Ctrl-C reaches this script alone, which hands it on once

WAIT=${WAIT:-600}  # seconds
PORT=${PORT:-6400}
LOGS=${LOGS:-${TMPDIR:-/tmp}}

# Fixed, and below the ephemeral range: Ray's way of finding a free port races with every outgoing connection.
ports=(
  --node-manager-port=$((PORT + 1)) --object-manager-port=$((PORT + 2)) --runtime-env-agent-port=$((PORT + 3))
  --dashboard-agent-grpc-port=$((PORT + 4)) --dashboard-agent-listen-port=$((PORT + 5))
  --metrics-export-port=$((PORT + 6)) --min-worker-port=$((PORT + 100)) --max-worker-port=$((PORT + 1099))
)

# Short, for the path of a socket in it may have 107 bytes; and no other run's.
RAY_TMPDIR=$(mktemp -d "${RAY_TMPDIR:-/tmp}/rl.XXXXXX")
export RAY_TMPDIR RAY_AUTH_MODE=token
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0   # else an end may take 30 s more; there is no traffic to drain
export RAY_worker_register_timeout_seconds=600   # a first import of torch over a shared file system is slow
unset RAY_ADDRESS RAY_AUTH_TOKEN                 # no other cluster, and no token in an environment: only its file
RAY_AUTH_TOKEN_PATH=$(realpath -m "${RAY_AUTH_TOKEN_PATH:-$RAY_TMPDIR/token}")  # actors have another working directory
export RAY_AUTH_TOKEN_PATH
for variable in $(compgen -e | grep -E '^(PMI|PMIX|OMPI)_'); do
  unset "$variable"  # with them, whatever loads MPI in an actor takes itself for a rank of Slurm's step
done
ulimit -Sn 65536 2>/dev/null || ulimit -Sn hard  # Ray keeps a few files open for every worker

# Ray's own ways of asking whether somebody is there take 40 s to say no.
answers() {  # HOST:PORT
  python3 -c 'import socket, sys; socket.create_connection(sys.argv[1:], 2)' "${1%:*}" "${1##*:}" 2>/dev/null
}

ray_pid=-1 run_pid=-1 child='' handed=0

start_ray() {  # ray start's options
  [[ -s $RAY_AUTH_TOKEN_PATH ]] || die 2 "there is no token in $RAY_AUTH_TOKEN_PATH (RAY_AUTH_TOKEN_PATH)"
  set +m  # else setsid forks, and $! is not Ray
  setsid ray start "$@" "${ports[@]}" ${CPUS:+--num-cpus="$CPUS"} --disable-usage-stats --block \
    >"$RAY_TMPDIR/start.log" 2>&1 </dev/null &
  ray_pid=$!
  set -m
  local up=$RAY_TMPDIR/ray/ray_current_cluster  # Ray writes it once this node is up
  until [[ -s $up ]]; do
    if ! kill -0 "$ray_pid" 2>/dev/null || ((SECONDS >= WAIT)); then
      cat "$RAY_TMPDIR/start.log" >&2
      die 3 "Ray did not start (waited $SECONDS s)"
    fi
    sleep 0.3
  done
  RAY_ADDRESS=$(<"$up")
  export RAY_ADDRESS
}

run() {  # a command, in the background: bash would hand a signal on only after a foreground one has ended
  "$@" </dev/null &
  child=$! run_pid=$!
  wait_for_child
}

wait_for_child() {
  local code before
  while :; do
    before=$handed code=0
    wait "$child" || code=$?
    ((handed > before)) || break  # else a signal ended the wait, and perhaps not the child
  done
  child=''
  return "$code"
}

hand_on() {
  [[ $child ]] || exit 143  # nothing runs yet
  handed=$((handed + 1))
  kill "-$1" "$child" 2>/dev/null || true
}
trap 'hand_on INT' INT
trap 'hand_on TERM' TERM HUP
trap 'hand_on USR1' USR1

# Actors change their title, their environment and their process group, and may outlive their parent: Ray's session
# tells them from everybody else's. What the run started shares its process group.
ours() {
  local stat line fields  # of fields: 0 state, 2 process group, 3 session
  for stat in /proc/[0-9]*/stat; do
    { read -r line <"$stat"; } 2>/dev/null || continue
    read -ra fields <<<"${line##*) }"
    if [[ ${fields[0]} != Z ]] && ((fields[3] == ray_pid || fields[2] == run_pid)); then echo "${line%% *}"; fi
  done
}

finish() {
  local code=$?
  trap '' INT TERM HUP USR1
  if ((ray_pid > 0)) && kill -TERM "$ray_pid" 2>/dev/null; then
    for _ in {1..50}; do
      kill -0 "$ray_pid" 2>/dev/null || break
      sleep 0.2
    done
  fi
  ours | xargs -r kill -KILL 2>/dev/null || true  # what the run left behind, or a Ray that hangs
  if ((code != 0 && code != 75)) && [[ -d $RAY_TMPDIR/ray/session_latest/logs ]]; then
    umask 077
    local kept=$LOGS/ray-logs-$HOSTNAME-$$
    mkdir -p "$LOGS" && cp -r "$RAY_TMPDIR/ray/session_latest/logs" "$kept" && say "Ray's logs are in $kept"
  fi
  rm -rf "$RAY_TMPDIR"
  exit "$code"
}
trap finish EXIT
