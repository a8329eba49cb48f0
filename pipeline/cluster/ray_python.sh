# Runs the arguments with the Python of this node's Ray; submitted beside a job's settings.
# The environment of Ray need not be active here, so PATH may lack both its Python and the command `dladiff`. A job's
# shell descends from the raylet, whose command line names the Python that it starts workers with.
ray_python=
pid=$$
while [ -z "$ray_python" ] && [ "${pid:-0}" -gt 1 ]; do
    ray_python=$(tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p')
    pid=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$pid/status" 2>/dev/null)
done
has_ray='import importlib.util, sys; sys.exit(importlib.util.find_spec("ray") is None)'
for python in "$ray_python" python3 python; do
    if "$python" -c "$has_ray" >/dev/null 2>&1; then
        exec "$python" "$@"
    fi
done
echo "error: this cluster has no Python with Ray where its head runs jobs; start Ray with its environment active" >&2
exit 2
