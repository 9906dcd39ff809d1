#!/usr/bin/env bash
# A Ray head on this machine, one run on it, and nothing of either afterwards.
set -euo pipefail

if [[ $# -eq 0 || $1 == --help || $1 == -h ]]; then
  cat <<'EOF'
usage: [NAME=value ...] launch/ray/head.sh RECIPE [key=value ...]

Starts a Ray head here, waits until NODES nodes have joined, runs `rlreason train RECIPE ...`,
stops the Ray that it started and exits with the code of the run (75: interrupted and committed;
the same command goes on). Exits 3 when the head or the nodes do not come in time. Ctrl-C, TERM
and USR1 are handed on to the run, which commits and ends.

  NODES=1      nodes to wait for, this one included
  WAIT=600     seconds until it gives up waiting
  ADDRESS=     this machine's address, as the workers reach it (default: Ray's choice)
  PORT=6400    the head's port; it and its node take PORT to PORT+7 and PORT+100 to PORT+1099
  CPUS=        what Ray may count on (default: all)
  LOGS=/tmp    where Ray's own logs are left when the run fails
  RAY_AUTH_TOKEN_PATH=  the token's file (default: a new one, which no worker elsewhere can have)
  RLREASON=rlreason     the program to run

Other machines join with launch/ray/worker.sh and a copy of the token's file.
EOF
  exit $(($# == 0 ? 2 : 0))
fi

# shellcheck source-path=SCRIPTDIR source=node.sh
. "${BASH_SOURCE[0]%/*}/node.sh"
NODES=${NODES:-1}

if [[ $RAY_AUTH_TOKEN_PATH == "$RAY_TMPDIR/token" ]]; then
  (umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH")
fi
! answers "127.0.0.1:$PORT" || die 3 "somebody has port $PORT: choose another with PORT"
start_ray --head --port="$PORT" --ray-client-server-port=$((PORT + 7)) --include-dashboard=false \
  ${ADDRESS:+--node-ip-address="$ADDRESS"}
say "Ray's head is up at $RAY_ADDRESS"

wait_for_nodes() {
  exec timeout --foreground "$((WAIT - SECONDS + 5))" python3 - "$NODES" "$((WAIT - SECONDS))" <<'EOF'
import sys, time, ray

nodes, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
ray.init(log_to_driver=False, configure_logging=False)
while (up := sum(node["Alive"] for node in ray.nodes())) < nodes:
    if time.monotonic() > deadline:
        sys.exit(f"{up} of {nodes} nodes have joined")
    time.sleep(0.5)
EOF
}
((NODES == 1)) || run wait_for_nodes || die 3 "the nodes did not come within $WAIT s (WAIT)"

run "${RLREASON:-rlreason}" train "$@"
