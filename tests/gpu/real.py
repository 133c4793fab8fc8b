"""The checks behind run.sh. Standard library only."""

import argparse
import base64
import contextlib
import http.client
import json
import os
import pathlib
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
IMAGE = "pody-base:latest"
USER, PASSWORD = "prober", "probe-password"
MIB = 512
PREFIX = "g" + secrets.token_hex(4)
CONFIG = f"""
name_prefix = "{PREFIX}"
available_ports = "41300-41310"
[gpu]
poll_seconds = 0.5
idle_poll_seconds = 0.5
probe_seconds = 1.0
[usage]
sample_seconds = 1.0
[[images]]
name = "pody-base"
ports = [22]
"""


class Daemon:
    def __init__(self, binary, home):
        self.home = home
        environment = {**os.environ, "PODY_HOME": str(home)}
        add = [binary, "user", "add", USER, "--admin", "--password-stdin"]
        subprocess.run(add, input=PASSWORD + "\n", text=True, env=environment, check=True, stdout=subprocess.DEVNULL)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = open(home / "daemon.log", "wb")
        serve = [binary, "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(serve, env=environment, stdout=self.log, stderr=self.log)
        wait("the daemon", lambda: self.answers())

    def answers(self):
        with contextlib.suppress(OSError):
            return self.ask("GET", "/healthz")[0] == 200

    def ask(self, method, path, **params):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            credential = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            query = "?" + urllib.parse.urlencode(params) if params else ""
            connection.request(method, path + query, headers={"Authorization": f"Basic {credential}"})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None

    def get(self, path, **params):
        status, answer = self.ask("GET", path, **params)
        check(status == 200, f"GET {path}: {status} {answer}")
        return answer

    def post(self, path, **params):
        status, answer = self.ask("POST", path, **params)
        check(status == 200, f"POST {path}: {status} {answer}")
        return answer

    def rows(self):
        """The rows by (GPU UUID, PID)."""
        gpus = self.get("/host/gpus")["gpus"]
        return {(gpu["uuid"], row["pid"]): row for gpu in gpus for row in gpu["processes"]}

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


def check(holds, what):
    if not holds:
        raise AssertionError(what)


def wait(what, look, seconds=30):
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        check(time.monotonic() < deadline, f"waited {seconds} s for {what}")
        time.sleep(0.2)
    return seen


def smi(*fields, apps=False):
    """Rows of nvidia-smi."""
    query = f"--query-{'compute-apps' if apps else 'gpu'}={','.join(fields)}"
    text = subprocess.run(["nvidia-smi", query, "--format=csv,noheader,nounits"], check=True, capture_output=True, text=True).stdout
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]


def same_list(daemon):
    """Whether both see the same processes, with the same memory to within a MiB, where nvidia-smi reports it."""
    theirs = {(uuid, int(pid)): memory for uuid, pid, memory in smi("gpu_uuid", "pid", "used_memory", apps=True)}
    ours = {key: row for key, row in daemon.rows().items() if {"compute", "mps"} & set(row["kinds"])}
    if ours.keys() != theirs.keys():
        return False
    mib = lambda row: None if row["gpu_memory_used"] is None else row["gpu_memory_used"] / (1 << 20)
    known = [(mib(ours[key]), float(memory)) for key, memory in theirs.items() if re.fullmatch(r"[\d.]+", memory)]
    return all(our is not None and abs(our - their) <= 1 for our, their in known)


@contextlib.contextmanager
def worker(command, pattern="ready"):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline().strip()
        check(line == pattern, f"{command} said {line!r}")
        yield process
    finally:
        process.terminate()
        process.wait(10)


def check_devices(daemon):
    ours = {gpu["uuid"]: gpu for gpu in daemon.get("/host/gpus")["gpus"]}
    theirs = smi("uuid", "index", "name", "memory.total")
    check(ours.keys() == {row[0] for row in theirs}, f"GPUs: {list(ours)}, and nvidia-smi has {theirs}")
    for uuid, index, name, memory in theirs:
        gpu = ours[uuid]
        check((gpu["index"], gpu["name"], gpu["state"]) == (int(index), name, "ok"), f"{gpu}")
        check(abs(gpu["reading"]["memory_total"] / (1 << 20) - float(memory)) <= 1, f"{uuid}: {gpu['reading']} and {memory} MiB")
    print(f"devices: {len(ours)}, as in nvidia-smi")


def check_host_process(daemon):
    command = [sys.executable, HERE / "worker.py", "0", str(MIB), "busy"]
    with worker(command) as process:
        find = lambda: [row for (_, pid), row in daemon.rows().items() if pid == process.pid]
        row = wait("the host's process", find)[0]
        check((row["pod"], row["user"], row["cmd"]) == ("", None, "[host process]"), f"{row}")
        check(row["gpu_memory_used"] is None or row["gpu_memory_used"] >= MIB << 20, f"{row}")
        wait("the same list", lambda: same_list(daemon))
        wait("its work", lambda: any(row["utilization"] for row in find()) or busy_device(daemon))
    wait("its end", lambda: not find())
    wait("the same list", lambda: same_list(daemon))
    print("host process: found, measured, gone after it ended")


def busy_device(daemon):
    return any((gpu["reading"] or {}).get("utilization") for gpu in daemon.get("/host/gpus")["gpus"])


def why_no_pods():
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode:
        return f"no Docker with an image {IMAGE}"
    if subprocess.run(["sh", "-c", "command -v nvidia-container-runtime-hook"], capture_output=True).returncode:
        return "no nvidia-container-runtime-hook on PATH"
    return None


def check_pod(daemon):
    """A process of a pod: its owner, and how its time is counted, computing and idle."""
    made = daemon.post("/pod/create", ins="main", image=IMAGE, gpus="1")["info"]
    container = made["name"]
    check(len(made["gpu_ids"]) == 1, f"{made}")
    subprocess.run(["docker", "cp", HERE / "worker.py", f"{container}:/worker.py"], check=True, capture_output=True)
    seconds = lambda: (daemon.get("/stat/usage", by="user") or [{}])[0]
    for mode, key in (("idle", "gpu_held_seconds"), ("busy", "gpu_active_seconds")):
        before = seconds().get(key, 0.0)
        begun = time.monotonic()
        with worker(["docker", "exec", container, "python3", "/worker.py", "0", str(MIB), mode]):
            row = wait("the pod's process", lambda: [row for row in daemon.rows().values() if row["pod"] == container])[0]
            check(row["user"] == USER and f"/worker.py 0 {MIB} {mode}" in row["cmd"], f"{row}")
            inside = subprocess.run(["docker", "exec", container, "cat", f"/proc/{row['pid_in_pod']}/cmdline"], capture_output=True)
            check(b"/worker.py" in inside.stdout, f"{row}: its PID inside is {inside.stdout}")
            wait("the same list", lambda: same_list(daemon))
            time.sleep(20)
            used, spent = seconds().get(key, 0.0) - before, time.monotonic() - begun
            # The first and the last second may be counted as the other kind.
            check(spent - 5 <= used <= spent + 1, f"{mode}: {used:.1f} s counted in {spent:.1f} s")
            # A client that exits does not end its command.
            os.kill(row["pid"], 15)
        wait("its end", lambda: not [row for row in daemon.rows().values() if row["pod"] == container])
    inspected = daemon.get("/pod/inspect", ins="main")
    check("gpu_trouble" not in inspected, f"{inspected}")
    daemon.post("/pod/delete", ins="main")
    print("pod: attributed, held and active time counted separately, its GPU still accessible")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--binary", required=True)
    binary = str(pathlib.Path(arguments.parse_args().binary).resolve())
    with tempfile.TemporaryDirectory(prefix="pody-gpu-") as folder:
        home = pathlib.Path(folder)
        (home / "config.toml").write_text(CONFIG)
        daemon = Daemon(binary, home)
        try:
            wait("the GPUs", lambda: daemon.get("/host/gpus")["gpus"])
            check_devices(daemon)
            check_host_process(daemon)
            if reason := why_no_pods():
                print(f"pods: skipped, {reason}")
            else:
                check_pod(daemon)
        except BaseException:
            print(f"--- log of the daemon\n{(home / 'daemon.log').read_text()}---", file=sys.stderr)
            raise
        finally:
            daemon.stop()
            left = subprocess.run(["docker", "ps", "-aq", "--filter", f"name=^/{PREFIX}-"], capture_output=True, text=True)
            for container in left.stdout.split():
                subprocess.run(["docker", "rm", "-f", container], capture_output=True)
    print("everything agrees with nvidia-smi")


main()
