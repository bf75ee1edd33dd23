#!/usr/bin/env bash
# Start an MLflow server in the background, unless one answers already; return once it answers.
#
#   start_mlflow.sh FOLDER ARTIFACTS [PORT] [NAMES]
#
# FOLDER     on this machine's disk: database and log
# ARTIFACTS  folder or URI (s3://...) where the server keeps artifacts; clients reach them through the server
# PORT       5000 if not given
# NAMES      comma-separated host names under which clients reach it, beside localhost, this machine's own
#            names and private addresses; MLflow answers others with 403
#
# It listens to this machine alone. MLFLOW_HOST=0.0.0.0 in the environment: to all that reach it, and it asks
# nobody for a password.
set -euo pipefail

folder=$1
artifacts=$2
port=${3:-5000}
names=${4:-}
host=${MLFLOW_HOST:-127.0.0.1}

answers() {
    python - "http://${host/0.0.0.0/127.0.0.1}:$port/health" <<'PYTHON'
import sys
import urllib.request

try:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=5)
except OSError:
    sys.exit(1)
PYTHON
}

if answers; then
    pid=$(cat "$folder/server.pid" 2>/dev/null || true)
    echo "an MLflow server answers on port $port already${pid:+, pid $pid}"
    exit 0
fi

hosts="localhost,127.0.0.1,10.*,192.168.*"
for second in $(seq 16 31); do hosts+=",172.$second.*"; done
for name in localhost 127.0.0.1 "$host" "$(hostname)" "$(hostname -f 2>/dev/null || hostname)" ${names//,/ }; do
    hosts+=",$name:*"
done

mkdir -p "$folder"
# Without the processes for MLflow's own jobs, which raygf does not use.
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false} \
setsid nohup mlflow server --host "$host" --port "$port" --workers 1 \
    --backend-store-uri "sqlite:///$folder/mlflow.db" \
    --serve-artifacts --artifacts-destination "$artifacts" \
    --allowed-hosts "$hosts" >>"$folder/server.log" 2>&1 </dev/null &
server=$!
echo "$server" >"$folder/server.pid"

for _ in $(seq 120); do
    if answers; then
        echo "MLflow server on $host:$port, pid $server; database, log and pid in $folder"
        exit 0
    fi
    kill -0 "$server" 2>/dev/null || break
    sleep 1
done
echo "the MLflow server does not answer on port $port:" >&2
tail -n 20 "$folder/server.log" >&2
exit 1
