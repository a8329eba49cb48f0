"""What lies in cluster/: names of metrics that exist, rules that promtool accepts, files that say what they must."""

import json
import re
import subprocess
import tomllib
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.cluster import pods

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"


def test_ray_up_file_fits_rays_own_schema() -> None:
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    spec = find_spec("ray")  # found, not imported: that takes seconds
    assert spec is not None and spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert gpu["max_workers"] <= config["max_workers"]
    for node in (head, gpu):
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert node["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    roles = [node["node_config"]["IamInstanceProfile"]["Name"] for node in (head, gpu)]
    page = (ROOT / "docs" / "setup" / "cloud.md").read_text()
    assert roles == ["dladiff-head", "dladiff-worker"]  # the head's role may start machines, the workers' may not
    assert all(f"| `{role}` |" in page for role in roles) and "`ec2:RunInstances`" in page and "`iam:PassRole`" in page
    assert "--volume /models:/models:ro" in config["docker"]["run_options"]
    assert any("mkdir -p /models" in command for command in config["initialization_commands"])
    assert config["file_mounts"] == {f"{pods.SCRATCH['home']}/.ray/auth_token": "~/.ray/auth_token"}
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert all("RAY_AUTH_MODE=token" in command for command in commands if "ray start" in command)
    assert not re.search(r"(?i)aws_secret|access_key", (CLUSTER / "aws.yaml").read_text())


def test_image_has_what_ray_up_calls() -> None:
    """Ray copies files into a container with rsync in it; the head's autoscaler logs in to workers with ssh."""
    (install,) = re.findall(r"apt-get install .*?&&", (CLUSTER / "Dockerfile").read_text(), re.DOTALL)
    assert {"bash", "openssh-client", "rsync"} <= set(install.split())


def test_script_of_slurm_is_bash() -> None:
    script = CLUSTER / "slurm" / "array.sh"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert script.stat().st_mode & 0o111
    assert "#SBATCH --signal=B:TERM@" in script.read_text() and "\nexec " in script.read_text()


AGAIN = "run .venv/bin/python cluster/lock.py > cluster/lock.txt"


def locked() -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package; every line must be a pin with hashes, as --require-hashes asks."""
    found = {}
    text = (CLUSTER / "lock.txt").read_text().replace("\\\n", " ")
    for line in (line for line in text.splitlines() if not line.startswith("#")):
        match = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
        assert match, line
        assert match[1] not in found, line
        found[match[1]] = match[2], re.findall("sha256:([0-9a-f]+)", match[3])
    return found


def closure() -> dict[str, str]:
    """What is installed here of what this package needs, by cluster/lock.py."""
    spec = spec_from_file_location("lock", CLUSTER / "lock.py")
    assert spec is not None and spec.loader is not None
    lock = module_from_spec(spec)
    spec.loader.exec_module(lock)
    needed: dict[str, str] = lock.needed()
    return needed


def test_lock_has_what_is_needed_in_the_versions_of_make() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = {name: pin for name, (pin, _) in locked().items()}
    lines = (line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    ours = {canonicalize_name(name): pin for name, equal, pin in lines if equal and not name.startswith("#")}
    needed = [Requirement(r) for r in (*project["project"]["dependencies"], *project["build-system"]["requires"])]
    assert [r.name for r in needed if not r.specifier.contains(pins[canonicalize_name(r.name)])] == [], AGAIN
    assert [name for name, pin in ours.items() if pins.get(name, pin) != pin] == [], AGAIN
    installed = closure()
    assert {"grpcio", "urllib3", "pydantic", "torch"} <= installed.keys()  # what is needed by what is needed
    assert installed.keys() - pins.keys() == set(), AGAIN


def test_lock_has_a_hash_of_both_processors() -> None:
    found = locked()
    for name in ("numpy", "torch", "pyarrow", "pillow"):  # a wheel for each
        assert len(set(found[name][1])) >= 2, AGAIN
    assert {"nvidia-cublas", "triton", "cuda-toolkit"} <= found.keys()  # of torch on PyPI, not of the one for the CPU


def test_installed_packages_and_pins_keep_the_lower_bounds() -> None:
    """The bounds exclude versions with known faults (docs/decisions/0014-supply-chain.md, which names each of them)."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    page = (ROOT / "docs" / "decisions" / "0014-supply-chain.md").read_text()
    stated = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", page, re.M))
    bounds = {Requirement(text).name: Requirement(text).specifier for text in needed}
    assert {name: str(bounds[name]) for name in stated} == {name: f">={version}" for name, version in stated.items()}
    assert {"torch", "transformers", "diffusers", "onnx", "pillow", "pyarrow", "ray", "jinja2"} <= stated.keys()
    assert [name for name, specifier in bounds.items() if not specifier.contains(version(name))] == []


def test_image_is_not_root_and_pinned() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == [f"{pods.USER}:{pods.USER}"]
    installs = [line for line in lines if "pip install" in line]
    assert [line.partition("--no-cache-dir ")[2] for line in installs] == [
        "--require-hashes -r lock.txt",
        "--no-deps --no-build-isolation .",
    ]
    assert f"HOME={pods.SCRATCH['home']}" in " ".join(lines)
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / name).exists() for name in line.split()[1:-1])


@pytest.mark.parametrize(
    "base, code", [("python:3.11", 1), ("python@sha256", 1), ("python:3.11@sha256:0a", 0), ("", 1)]
)
def test_image_is_built_on_a_digest_alone(base: str, code: int) -> None:
    (command,) = (
        line.removeprefix("RUN ")
        for line in (CLUSTER / "Dockerfile").read_text().splitlines()
        if line.startswith("RUN case")
    )
    done = subprocess.run(["sh", "-c", command], env={"BASE": base}, capture_output=True, text=True)
    assert done.returncode == code
    assert ("--build-arg BASE=" in done.stderr) == bool(code)
