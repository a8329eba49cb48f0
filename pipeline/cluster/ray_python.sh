# Runs the arguments with the Python of this node's Ray; submitted beside a job's settings.
# The environment of Ray need not be active here, so PATH may lack both its Python and the command `dladiff`. Ray starts
# its processes with bash, which leaves the path of their Python in the variable `_`; a job passes it as RAY_PYTHON.
has_ray='import importlib.util, sys; sys.exit(importlib.util.find_spec("ray") is None)'
for python in "$RAY_PYTHON" python3 python; do
    if "$python" -c "$has_ray" >/dev/null 2>&1; then
        exec "$python" "$@"
    fi
done
echo "error: no Python with Ray on this node (Ray's own is '$RAY_PYTHON'); start Ray with its environment active" >&2
exit 2
