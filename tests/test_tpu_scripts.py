"""tpu_scripts/ prints exactly the commands that it runs, and refuses bad settings in one line. A fake gcloud stands in for the cloud."""

import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tpu_scripts"
QUEUED = {"BACKEND": "queued", "NAME": "tune", "PROJECT": "notes", "ZONE": "us-east5-a", "ACCELERATOR": "v5litepod-8"}
MIG = QUEUED | {"BACKEND": "mig", "ACCELERATOR": "tpu7x-2x2x2"}
WORDS = ("train", "coarse", "gs://b/my clips", "--workdir", "gs://b/run", "--gin.coarse/StagePart.batch_size=64")

IN = "--project=notes --zone=us-east5-a"
VMS = f"gcloud compute instance-groups managed list-instances tune {IN} '--format=value(instance.basename())'"
ON_ALL = f"gcloud compute tpus queued-resources ssh tune {IN} --worker=all --node=all"
ON_FIRST = f"gcloud compute tpus queued-resources ssh tune {IN} --worker=0 --node=0"
ON_VM = f"gcloud compute ssh VM {IN}"
NUMBER = '[ "$(curl -s -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)" != 0 ]'
LOG = "sudo journalctl --unit=musiclm --lines=100 --follow --output=cat"

ARCHIVE = ROOT / "build" / "musiclm_jax.tar.gz"
PACK = [f"mkdir -p {ROOT}/build", f"git -C {ROOT} archive --prefix=musiclm_jax/ --output={ARCHIVE} HEAD"]
INSTALL = """set -e
if [ -f musiclm_jax.tar.gz ]; then rm -rf musiclm_jax; tar -xzf musiclm_jax.tar.gz; fi
curl -LsSf https://astral.sh/uv/install.sh | sh
.local/bin/uv venv --quiet --allow-existing --python 3.12 musiclm
.local/bin/uv pip install --python musiclm/bin/python --reinstall-package musiclm-jax 'PACKAGE' 'etils[epath-gcs]'
musiclm/bin/musiclm --version"""
HERE, GIT = (INSTALL.replace("PACKAGE", package) for package in ("./musiclm_jax[train,tpu]", "musiclm-jax[train,tpu] @ git+https://h/m.git"))
UNIT = """[Unit]
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=3600
StartLimitBurst=10
[Service]
User=$USER
WorkingDirectory=$HOME
Environment=PYTHONUNBUFFERED=1 JAX_PLATFORMS=tpu,cpu
ExecStart=/bin/bash musiclm.sh
Restart=on-failure
RestartSec=30
TimeoutStopSec=600
LimitMEMLOCK=infinity
LimitNOFILE=1048576
[Install]
WantedBy=multi-user.target
"""
START = f"""set -e
cat > musiclm.sh <<'END'
exec musiclm/bin/musiclm train coarse gs://b/my\\ clips --workdir gs://b/run --gin.coarse/StagePart.batch_size=64
END
sudo tee /etc/systemd/system/musiclm.service > /dev/null <<END
{UNIT}END
sudo systemctl daemon-reload
sudo systemctl enable --quiet musiclm
sudo systemctl reset-failed musiclm || true
sudo systemctl restart musiclm"""


def command(text):
    """The flag --command as --dry-run prints it."""
    return "'--command=" + text.replace("'", "'\\''") + "'"


CREATE = "gcloud compute tpus queued-resources create tune"
TEMPLATE = (
    "gcloud compute instance-templates create tune --project=notes --machine-type={} --maintenance-policy=TERMINATE --image-family={}"
    " --image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB --scopes=cloud-platform"
)
POLICY = "gcloud compute resource-policies create workload-policy tune --project=notes --region=us-east5 --type=HIGH_THROUGHPUT --accelerator-topology={}"
GROUP = f"gcloud compute instance-groups managed create tune {IN} --size={{}} --template=tune --default-action-on-vm-failure=do-nothing"
SLICE = "--workload-policy=projects/notes/regions/us-east5/resourcePolicies/tune --target-size-policy-mode=bulk"
OLDER, NEWER = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e", "ubuntu-accel-2404-amd64-tpu-tpu7x"
STATE = f"gcloud compute tpus queued-resources describe tune {IN} '--format=value(state.state)'"
MIG_STATE = f"gcloud compute instance-groups managed list-instances tune {IN} '--format=value(instanceStatus)'"
DELETE = [f"gcloud compute tpus queued-resources delete tune {IN} --force --quiet"]
MIG_DELETE = [
    f"gcloud compute instance-groups managed delete tune {IN} --quiet",
    "gcloud compute instance-templates delete tune --project=notes --quiet",
    "gcloud compute resource-policies delete tune --project=notes --region=us-east5 --quiet",
]
SETUP = [STATE, *PACK, f"gcloud compute tpus queued-resources scp {ARCHIVE} tune: {IN} --worker=all --node=all", f"{ON_ALL} {command(HERE)}"]
MIG_SETUP = [MIG_STATE, *PACK, VMS, f"gcloud compute scp {ARCHIVE} VM: {IN}", VMS, f"{ON_VM} {command(HERE)}"]
QUEUED_V5E = f"{CREATE} --node-id=tune --accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite {IN}"
MIG_TPU7X = [TEMPLATE.format("tpu7x-standard-4t", NEWER), POLICY.format("2x2x2"), f"{GROUP.format(2)} {SLICE}"]

# (script, its arguments, settings, the lines that it prints)
LINES = {
    "create v5e": ("create", (), QUEUED, [QUEUED_V5E]),
    "create v4": (
        "create",
        (),
        QUEUED | {"ACCELERATOR": "v4-16", "SPOT": "0"},
        [f"{CREATE} --node-id=tune --accelerator-type=v4-16 --runtime-version=tpu-ubuntu2204-base {IN}"],
    ),
    "create v5p multislice": (
        "create",
        (),
        QUEUED | {"ACCELERATOR": "v5p-32", "SLICES": "3", "SPOT": "1", "VALID_FOR": "6h"},
        [f"{CREATE} --node-count=3 --node-prefix=tune --accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5 {IN} --spot --valid-until-duration=6h"],
    ),
    "create v6e": (
        "create",
        (),
        QUEUED | {"ACCELERATOR": "v6e-32", "CREATE_FLAGS": "--reserved --network=mine"},
        [f"{CREATE} --node-id=tune --accelerator-type=v6e-32 --runtime-version=v2-alpha-tpuv6e {IN} --reserved --network=mine"],
    ),
    "create mig tpu7x": ("create", (), MIG, MIG_TPU7X),
    "create mig v5p spot": (
        "create",
        (),
        MIG | {"ACCELERATOR": "v5p-2x2x4", "SPOT": "1"},
        [
            f"{TEMPLATE.format('ct5p-hightpu-4t', OLDER)} --provisioning-model=SPOT --instance-termination-action=STOP",
            POLICY.format("2x2x4"),
            f"{GROUP.format(4)} {SLICE}",
        ],
    ),
    "create mig one machine": ("create", (), MIG | {"ACCELERATOR": "v6e-2x2"}, [TEMPLATE.format("ct6e-standard-4t", OLDER), GROUP.format(1)]),
    "setup": ("setup", (), QUEUED, SETUP),
    "setup from git": ("setup", (), QUEUED | {"SOURCE": "git+https://h/m.git"}, [STATE, f"{ON_ALL} {command(GIT)}"]),
    "setup mig": ("setup", (), MIG, MIG_SETUP),
    "run": ("run", WORDS, QUEUED, [f"{ON_ALL} {command(START)}"]),
    "run through IAP": (
        "run",
        WORDS,
        QUEUED | {"SSH_FLAGS": "--tunnel-through-iap"},
        [f"{ON_ALL} --tunnel-through-iap {command(START)}"],
    ),
    "run mig": ("run", WORDS, MIG, [VMS, f"{ON_VM} {command(START)}"]),
    "stop": ("run", ("--stop",), QUEUED, [f"{ON_ALL} '--command=sudo systemctl disable --now musiclm'"]),
    "stop mig": ("run", ("--stop",), MIG, [VMS, f"{ON_VM} '--command=sudo systemctl disable --now musiclm'"]),
    "watch": (
        "watch",
        WORDS,
        QUEUED,
        [
            f"{ON_ALL} {command(START)}",
            STATE,
            f"{ON_FIRST} '--command=systemctl is-active musiclm || true'",
            *DELETE,
            QUEUED_V5E,
            *SETUP,
            f"{ON_ALL} {command(START)}",
        ],
    ),
    "watch mig": (
        "watch",
        WORDS,
        MIG,
        [
            VMS,
            f"{ON_VM} {command(START)}",
            MIG_STATE,
            VMS,
            f"{ON_VM} {command(NUMBER + ' || { systemctl is-active musiclm || true; }')}",
            *MIG_DELETE,
            *MIG_TPU7X,
            *MIG_SETUP,
            VMS,
            f"{ON_VM} {command(START)}",
        ],
    ),
    "logs": ("logs", (), QUEUED, [f"{ON_FIRST} '--command={LOG}'"]),
    "logs of all": ("logs", ("--all",), QUEUED, [f"{ON_ALL} '--command={LOG}'"]),
    "logs mig": ("logs", (), MIG, [VMS, f"{ON_VM} {command(NUMBER + ' || { ' + LOG + '; }')}"]),
    "logs of all mig": ("logs", ("--all",), MIG, [VMS, f"{ON_VM} '--command={LOG}'"]),
    "delete": ("delete", (), QUEUED, DELETE),
    "delete mig": ("delete", (), MIG, MIG_DELETE),
    "delete mig one machine": ("delete", (), MIG | {"ACCELERATOR": "v6e-2x2"}, MIG_DELETE[:2]),
}


@pytest.fixture
def tools(tmp_path):
    """A folder for PATH with what the scripts use, without gcloud."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "basename", "cat", "date", "dirname", "env", "git", "grep", "mkdir", "sed", "sleep", "tee"):
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


def program(path, text):
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def call(tools, script, *words, **settings):
    env = {"PATH": str(tools), "HOME": str(tools.parent), "USER": "ada"} | settings
    return subprocess.run([SCRIPTS / f"{script}.sh", *words], capture_output=True, text=True, env=env, cwd=tools.parent, timeout=60)


@pytest.mark.parametrize("name", LINES)
def test_dry_run_prints_the_commands(tools, name):
    script, words, settings, lines = LINES[name]
    done = call(tools, script, "--dry-run", *words, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("name", [name for name in LINES if not name.startswith("watch")])
def test_without_dry_run_the_same_commands_run(tools, name):
    script, words, settings, lines = LINES[name]
    log = tools.parent / "calls"
    names, states = r'printf "tune-b\ntune-a\n"', r'printf "RUNNING\nRUNNING\n"'
    answers = f'case "$*" in *basename*) {names} ;; *instanceStatus*) {states} ;; *describe*) echo ACTIVE ;; esac'
    for tool in ("gcloud", "git", "mkdir"):
        (tools / tool).unlink(missing_ok=True)
        program(tools / tool, f'printf "%s\\0" {tool} "$@" > "{log}.$BASHPID"\n{answers}\n')
    done = call(tools, script, *words, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    calls = sorted(path.read_text().split("\0")[:-1] for path in log.parent.glob("calls.*"))
    expected = []
    for line in map(shlex.split, lines):
        for vm in ("tune-a", "tune-b") if {"VM", "VM:"} & {*line} else ("VM",):
            expected.append([re.sub("^VM(?=:?$)", vm, word) for word in line])
    assert calls == sorted(expected)


def test_the_service_on_a_worker(tools):
    home = tools.parent
    program(tools / "sudo", f'if [[ $1 == tee ]]; then tee "{home}/unit"; else echo "$*" >> "{home}/calls"; fi\n')
    subprocess.run(["bash", "-c", START], check=True, cwd=home, env={"PATH": str(tools), "HOME": str(home), "USER": "ada"})
    assert (home / "unit").read_text() == UNIT.replace("$USER", "ada").replace("$HOME", str(home))
    systemctl = ("daemon-reload", "enable --quiet musiclm", "reset-failed musiclm", "restart musiclm")
    assert (home / "calls").read_text().splitlines() == [f"systemctl {words}" for words in systemctl]
    (home / "musiclm" / "bin").mkdir(parents=True)
    program(home / "musiclm" / "bin" / "musiclm", 'printf "%s\\n" "$@"\n')
    done = subprocess.run(["bash", "musiclm.sh"], capture_output=True, text=True, check=True, cwd=home, env={"PATH": str(tools)})
    assert done.stdout.splitlines() == list(WORDS)


@pytest.mark.parametrize(("end", "status"), [("inactive", 0), ("failed", 1)])
def test_watch_makes_a_preempted_tpu_again(tools, end, status):
    states = tools.parent / "states"  # What the cloud answers, one line for each question. The empty line: it does not answer.
    states.write_text("ACTIVE\n\nSUSPENDED\nPROVISIONING\nACTIVE\nACTIVE\nACTIVE\n")
    services = tools.parent / "services"
    services.write_text(f"active\n{end}\n")
    program(
        tools / "gcloud",
        f"""case "$*" in
  *describe*) file="{states}" ;;
  *is-active*) file="{services}" ;;
  *) [[ "$*" == *" scp "* ]] || echo "$4" "$5" "${{*: -1}}" | head -1 >> "{tools.parent}/calls" && exit ;;
esac
answer="$(head -1 "$file")" && sed -i 1d "$file" && echo "$answer" && [[ -n "$answer" ]]
""",
    )
    (tools / "head").symlink_to(shutil.which("head"))
    done = call(tools, "watch", *WORDS, SOURCE="git+https://h/m.git", WATCH_SECONDS="0", **QUEUED)
    assert done.returncode == status, done.stderr
    calls = [line.split()[0] for line in (tools.parent / "calls").read_text().splitlines()]
    assert calls == ["ssh", "delete", "create", "ssh", "ssh"]
    assert states.read_text() == services.read_text() == ""


BAD = [
    *((script, words, without, f"{without} is not set") for script, words in (("create", ()), ("run", ("info",))) for without in QUEUED),
    *((script, (), {"BACKEND": "gke"}, "BACKEND=gke: expected queued or mig") for script in ("create", "setup", "logs", "delete")),
    ("create", (), {"ACCELERATOR": "v5e-8"}, "ACCELERATOR=v5e-8: with BACKEND=queued expected v4, v5litepod, v5p or v6e"),
    ("create", (), {"ACCELERATOR": "tpu7x-2x2x2"}, "with BACKEND=queued expected"),
    ("create", (), {"ACCELERATOR": "v5p-32; ls"}, "with BACKEND=queued expected"),
    ("create", (), MIG | {"ACCELERATOR": "v5litepod-2x4"}, "with BACKEND=mig expected v5p, v6e or tpu7x, and a topology"),
    ("create", (), MIG | {"ACCELERATOR": "tpu7x-16"}, "with BACKEND=mig expected v5p, v6e or tpu7x, and a topology"),
    ("create", (), MIG | {"ACCELERATOR": "v6e-1x2"}, "expected a multiple of 4 chips"),
    ("create", (), MIG | {"SLICES": "2"}, "SLICES=2: BACKEND=mig makes one slice"),
    ("create", (), MIG | {"VALID_FOR": "6h"}, "VALID_FOR=6h: a group has no time limit"),
    ("create", (), {"SLICES": "0"}, "SLICES=0: expected a whole number from 1"),
    ("create", (), {"SPOT": "yes"}, "SPOT=yes: expected 1 or 0"),
    ("delete", (), {"NAME": "My TPU"}, "NAME=My TPU: expected lower-case letters"),
    ("create", ("--dryrun",), {}, "unknown argument --dryrun: see create.sh --help"),
    ("run", (), {}, "no command: expected the words after musiclm"),
    ("run", ("--stop", "info"), {}, "unexpected words after --stop: info"),
    ("watch", ("--stop",), {}, "unknown argument --stop"),
    ("watch", (), {}, "no command"),
]


@pytest.mark.parametrize(("script", "words", "changes", "message"), BAD)
def test_bad_input_is_one_line(tools, script, words, changes, message):
    settings = {key: value for key, value in QUEUED.items() if key != changes} if isinstance(changes, str) else QUEUED | changes
    done = call(tools, script, "--dry-run", *words, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{script}.sh: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["create", "setup", "run", "watch", "logs", "delete"])
def test_without_gcloud_nothing_is_done(tools, script):
    done = call(tools, script, *WORDS[: 2 * (script in ("run", "watch"))], **QUEUED)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{script}.sh: gcloud is not on PATH: install the Google Cloud CLI, or use --dry-run\n"


def test_setup_of_a_tpu_that_is_gone_ends(tools):
    program(tools / "gcloud", "echo SUSPENDED\n")
    done = call(tools, "setup", **QUEUED)
    assert (done.returncode, done.stderr) == (1, "tune is not there (SUSPENDED): run delete.sh, then create.sh\n")


def test_a_failure_on_one_machine_is_a_failure(tools):
    program(tools / "gcloud", 'case "$*" in *list-instances*) printf "tune-a\\ntune-b\\n" ;; *tune-a*) exit 1 ;; esac\n')
    assert call(tools, "run", "info", **MIG).returncode == 1


def test_delete_goes_on_where_a_part_is_missing(tools):
    program(tools / "gcloud", f'echo "$2" >> "{tools.parent}/calls"; [[ "$2" != instance-groups ]]\n')
    assert call(tools, "delete", **MIG).returncode == 1
    assert (tools.parent / "calls").read_text().split() == ["instance-groups", "instance-templates", "resource-policies"]


def test_help_is_the_comment_at_the_beginning(tools):
    for path in SCRIPTS.glob("*.sh"):
        if os.access(path, os.X_OK):
            done = call(tools, path.stem, "--help")
            assert done.returncode == 0 and f"{path.name} [--dry-run]" in done.stdout and "set -euo" not in done.stdout


def test_scripts_are_short_and_strict():
    paths = sorted(SCRIPTS.glob("*"))
    assert [path.name for path in paths if os.access(path, os.X_OK)] == ["create.sh", "delete.sh", "logs.sh", "run.sh", "setup.sh", "watch.sh"]
    for path in paths:
        assert len(path.read_text().splitlines()) < 60, path.name
        assert "set -euo pipefail" in path.read_text() or path.name == "workers.sh"
