"""The measurements behind compare.sh. Standard library only.

Each of our numbers is next to that of the original or of the raw engine, measured alternately in the same run, so that a
busy machine slows both. Reads: wrk, 8 connections, Basic auth, medians over the rounds. Changes: one at a time,
medians; then a burst.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import platform
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.parse

PREFIX = "bench"
USER, PASSWORD = "bencher", "bench-password"
AUTH = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
IMAGE = "pody-base:latest"
PODS = 20
ROUNDS, SECONDS = 3, 3
SINGLE = 25
BURST = 40
# Numbers of pods at which the sampler's cost is measured.
SAMPLED = (100, 200)
DOCKER = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")


class Engine(http.client.HTTPConnection):
    """A connection to the engine's socket."""

    def __init__(self):
        super().__init__("docker", timeout=120)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(DOCKER)


def call(connection, method, path, body=None, headers=None):
    """One request; returns (status, parsed response)."""
    headers = dict(headers or {})
    if body is not None:
        body = json.dumps(body)
        headers["Content-Type"] = "application/json"
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    text = response.read()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text


def engine(method, path, body=None):
    connection = Engine()
    with contextlib.closing(connection):
        status, answer = call(connection, method, path, body)
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {answer}")
        return answer


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Gpus:
    """The stand-in for NVIDIA's library: a directory with the library and the state file that it reads."""

    def __init__(self, library, devices):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="pody-bench-gpus-"))
        (self.directory / "libnvidia-ml.so.1").symlink_to(pathlib.Path(library).resolve())
        self.assigned = [[] for _ in range(devices)]
        self.write()

    def assign(self, pids):
        """Distributes processes over the GPUs."""
        self.assigned = [pids[at :: len(self.assigned)] for at in range(len(self.assigned))]
        self.write()

    def write(self):
        rows = lambda pids: [{"pid": pid, "used_memory": 1 << 30, "sm_util": 50} for pid in pids]
        devices = [{"uuid": f"GPU-{at}", "processes": rows(pids)} for at, pids in enumerate(self.assigned)]
        fresh = self.directory / "state.new"
        fresh.write_text(json.dumps({"devices": devices}))
        fresh.rename(self.directory / "state.json")

    def environment(self):
        return {"LD_LIBRARY_PATH": str(self.directory), "PODY_NVML_STATE": str(self.directory / "state.json")}


class Server:
    """One of the two servers: a process, a port, and its memory."""

    def __init__(self, name, command, port, home, gpus):
        self.name, self.port = name, port
        self.log = open(pathlib.Path(home) / "server.log", "wb")
        environment = {**os.environ, **gpus.environment(), "PODY_HOME": str(home)}
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                if self.get("/version")[0] == 200:
                    return
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"{name} does not answer; see {self.log.name}")
            time.sleep(0.05)

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def get(self, path):
        with contextlib.closing(self.connection()) as connection:
            return call(connection, "GET", path, headers={"Authorization": AUTH})

    def post(self, path, **params):
        with contextlib.closing(self.connection()) as connection:
            status, answer = call(connection, "POST", f"{path}?{urllib.parse.urlencode(params)}", headers={"Authorization": AUTH})
        if status != 200:
            raise RuntimeError(f"{path} {params}: {status} {answer}")
        return answer

    def tree(self):
        """The process and its descendants."""
        parents = {}
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                parents[int(stat.parent.name)] = int(fields[1])
        members = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in members} - members:
            members |= more
        return members

    def resident_mib(self):
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError, AttributeError):
                status = pathlib.Path(f"/proc/{pid}/status").read_text()
                total += int(re.search(r"VmRSS:\s+(\d+)", status)[1])
        return total / 1024

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def wrk(server, path):
    """Requests per second, p50 and p99 in milliseconds, resident MiB halfway through."""
    script = ["wrk", "-t1", "-c8", f"-d{SECONDS}s", "--latency", "-H", f"Authorization: {AUTH}"]
    running = subprocess.Popen([*script, f"http://127.0.0.1:{server.port}{path}"], stdout=subprocess.PIPE, text=True)
    time.sleep(SECONDS / 2)
    resident = server.resident_mib()
    text = running.communicate()[0]
    if "Non-2xx" in text:
        raise RuntimeError(f"{server.name} {path}: {text}")
    units = {"us": 1e-3, "ms": 1, "s": 1e3}
    latency = {p: float(n) * units[u] for p, n, u in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", text)}
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]), latency["50"], latency["99"], resident


def compare_reads(original, ours):
    routes = ["/user/info", "/pod/list", "/pod/inspect?ins=held", "/image/list", "/host/gpu-ps"]
    results = {route: {original: [], ours: []} for route in routes}
    for _ in range(ROUNDS):
        for route in routes:
            for server in (original, ours):
                results[route][server].append(wrk(server, route))
    print(f"\n| read, {PODS} pods | original /s | pody /s | ratio | original p50 / p99 ms | pody p50 / p99 ms |")
    print("| --- | --: | --: | --: | --: | --: |")
    resident = {}
    for route, by_server in results.items():
        medians = {s: [statistics.median(column) for column in zip(*rows)] for s, rows in by_server.items()}
        (old, old50, old99, _), (new, new50, new99, _) = medians[original], medians[ours]
        for server, rows in by_server.items():
            resident[server] = max([resident.get(server, 0), *(row[3] for row in rows)])
        route = route.split("?")[0]
        print(f"| `{route}` | {old:,.0f} | {new:,.0f} | **{new / old:,.0f}×** | {old50:.1f} / {old99:.1f} | {new50:.2f} / {new99:.2f} |")
    print(f"| peak memory during the reads, MiB | {resident[original]:.0f} | {resident[ours]:.0f} | | | |")


def raw_body(template):
    """The body that creates a pod at the engine: the same as ours, with a port that the engine chooses."""
    config, host = template["Config"], template["HostConfig"]
    kept = ["Memory", "MemorySwap", "PidsLimit", "CapAdd", "CapDrop", "SecurityOpt", "LogConfig", "RestartPolicy", "IpcMode", "Mounts"]
    return {
        "Image": IMAGE,
        "Tty": True,
        "Env": [line for line in config["Env"] if line.startswith("NVIDIA")],
        "ExposedPorts": {"22/tcp": {}},
        "HostConfig": {key: host[key] for key in kept if host.get(key)} | {"PortBindings": {"22/tcp": [{"HostPort": ""}]}},
    }


def raw_create(name, body):
    made = engine("POST", f"/containers/create?name={name}", body)["Id"]
    engine("POST", f"/containers/{made}/start")
    return made


def raw_exec(container):
    made = engine("POST", f"/containers/{container}/exec", {"AttachStdout": True, "AttachStderr": True, "Tty": True, "Cmd": ["/bin/bash", "-c", "true"]})["Id"]
    # Read to the end, as a client does: the stream ends when the command does.
    connection = Engine()
    connection.connect()
    body = b'{"Detach": false, "Tty": true}'
    head = f"POST /exec/{made}/start HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sock.sendall(head.encode() + body)
    while connection.sock.recv(65536):
        pass
    connection.close()
    return engine("GET", f"/exec/{made}/json")["ExitCode"]


def timed(work):
    started = time.perf_counter()
    result = work()
    return (time.perf_counter() - started) * 1000, result


def compare_changes(ours, body):
    times = {key: {"raw": [], "ours": []} for key in ("create + start", "exec", "delete")}
    for number in range(SINGLE):
        def raw():
            spent, container = timed(lambda: raw_create(f"{PREFIX}-raw-x{number}", body))
            times["create + start"]["raw"].append(spent)
            times["exec"]["raw"].append(timed(lambda: raw_exec(container))[0])
            times["delete"]["raw"].append(timed(lambda: engine("DELETE", f"/containers/{container}?force=1&v=1"))[0])

        def pody():
            name = f"x{number}"
            times["create + start"]["ours"].append(timed(lambda: ours.post("/pod/create", ins=name, image=IMAGE))[0])
            times["exec"]["ours"].append(timed(lambda: ours.post("/pod/exec", ins=name, cmd="true"))[0])
            times["delete"]["ours"].append(timed(lambda: ours.post("/pod/delete", ins=name))[0])

        # Alternating, so that neither always comes second.
        for one in (raw, pody) if number % 2 else (pody, raw):
            one()
    print("\n| change, ms | engine median | pody median | difference | engine p90 | pody p90 |")
    print("| --- | --: | --: | --: | --: | --: |")
    for key, both in times.items():
        old, new = statistics.median(both["raw"]), statistics.median(both["ours"])
        tails = [statistics.quantiles(both[side], n=10)[-1] for side in ("raw", "ours")]
        print(f"| {key} | {old:.1f} | {new:.1f} | **{new - old:+.1f}** | {tails[0]:.1f} | {tails[1]:.1f} |")


def compare_burst(ours, body):
    rates = {4: [], 8: []}
    mine = []
    reads = []
    for round_number in range(2):
        for workers in rates:
            names = [f"{PREFIX}-raw-b{workers}x{n}" for n in range(BURST)]
            with concurrent.futures.ThreadPoolExecutor(workers) as pool:
                spent, made = timed(lambda: list(pool.map(lambda name: raw_create(name, body), names)))
                rates[workers].append(BURST / spent * 1000)
                list(pool.map(lambda container: engine("DELETE", f"/containers/{container}?force=1&v=1"), made))
        done = threading.Event()

        def read():
            while not done.is_set():
                reads.append(timed(lambda: ours.get("/pod/list"))[0])
                time.sleep(0.005)

        reader = threading.Thread(target=read)
        reader.start()
        names = [f"b{n}" for n in range(BURST)]
        with concurrent.futures.ThreadPoolExecutor(BURST) as pool:
            spent, _ = timed(lambda: list(pool.map(lambda name: ours.post("/pod/create", ins=name, image=IMAGE), names)))
            mine.append(BURST / spent * 1000)
            done.set()
            reader.join()
            list(pool.map(lambda name: ours.post("/pod/delete", ins=name), names))
    best_workers, best = max(((w, statistics.median(r)) for w, r in rates.items()), key=lambda item: item[1])
    rate = statistics.median(mine)
    p99 = statistics.quantiles(reads, n=100)[-1]
    print(f"\n| burst of {BURST} creates | |")
    print("| --- | --: |")
    print(f"| engine's own best rate ({best_workers} at a time) | {best:.2f} /s |")
    print(f"| pody, all {BURST} at once | {rate:.2f} /s (**{rate / best * 100:.0f} %**) |")
    print(f"| `/pod/list` during it, p50 / p99 | {statistics.median(reads):.1f} / **{p99:.1f} ms** |")


def processes_in(container):
    """Host PIDs of the processes in a container."""
    top = engine("GET", f"/containers/{container}/top?ps_args=-eo+pid")
    return [int(row[0]) for row in top["Processes"]]


def daemon_share(options, config, home, gpus, pods, processes, seconds):
    """The share of a core that the daemon takes when it samples at this interval."""
    limits = f"\n[gpu]\nidle_poll_seconds = {seconds}\n[usage]\nsample_seconds = {seconds}\n"
    (pathlib.Path(home) / "config.toml").write_text(config + limits)
    port = free_port()
    server = Server("pody", [options.binary, "serve", "--host", "127.0.0.1", "--port", str(port)], port, home, gpus)
    try:
        deadline = time.monotonic() + 30
        while len(server.get("/pod/list")[1]) < pods or sum(map(len, server.get("/host/gpu-ps")[1].values())) < processes:
            if time.monotonic() > deadline:
                raise RuntimeError("not all pods and processes are seen")
            time.sleep(0.2)
        # The request above counts as somebody watching for 15 s, and meanwhile the GPUs are read every second.
        time.sleep(17)
        ticks = lambda: sum(map(int, pathlib.Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        before, started = ticks(), time.monotonic()
        time.sleep(30)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - started)
    finally:
        server.stop()


def measure_sampler(options, config, home):
    """CPU time of the daemon with many pods and processes on eight GPUs: sampled every second, and not at all.

    The difference is the cost of poller and sampler; the rest is listing the engine's containers every second.
    """
    body = {"Image": IMAGE, "Cmd": ["/bin/sh", "-c", "for n in 1 2 3 4 5 6 7 8 9; do sleep 9999 & done; wait"], "HostConfig": {}}
    print("\n| 1 Hz, 8 GPUs, percent of a core | daemon | of which poller and sampler |")
    print("| --- | --: | --: |")
    made = []
    for pods in SAMPLED:
        names = [f"{PREFIX}-{USER}-s{n}" for n in range(len(made), pods)]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            made += list(pool.map(lambda name: raw_create(name, body), names))
        gpus = Gpus(options.nvml, 8)
        pids = [pid for container in made for pid in processes_in(container)]
        gpus.assign(pids)
        try:
            sampled, without = (daemon_share(options, config, home, gpus, pods, len(pids), seconds) for seconds in (1.0, 3600.0))
        finally:
            shutil.rmtree(gpus.directory, ignore_errors=True)
        print(f"| {pods} pods, {len(pids):,} processes | {sampled * 100:.2f} % | **{(sampled - without) * 100:.2f} %** |")


def clean():
    for container in engine("GET", "/containers/json?all=1"):
        if any(name.startswith(f"/{PREFIX}-") for name in container["Names"]):
            with contextlib.suppress(RuntimeError):
                engine("DELETE", f"/containers/{container['Id']}?force=1&v=1")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--original", required=True)
    arguments.add_argument("--nvml", required=True)
    options = arguments.parse_args()
    homes = [tempfile.mkdtemp(prefix="pody-bench-") for _ in range(2)]
    config = f'''
name_prefix = "{PREFIX}"
available_ports = "41000-41200"
commit_name = "pody-commit"
commit_image_ports = [22]
volume_mappings = []
network = ""
[default_quota]
max_pods = -1
gpu_count = -1
gpus = "none"
memory_limit = "1g"
storage_size = ""
commit_count = 1
commit_size_limit = "20g"
shm_size = ""
tmpfs_size = "none"
[[images]]
name = "pody-base"
ports = [22]
'''
    for home in homes:
        (pathlib.Path(home) / "config.toml").write_text(config)
    servers = []
    gpus = Gpus(options.nvml, 2)
    clean()
    try:
        original_bin = pathlib.Path(options.original)
        quiet = {"stdout": subprocess.DEVNULL, "check": True}
        subprocess.run([original_bin / "pody-user", "add", USER, PASSWORD, "--admin"], env={**os.environ, "PODY_HOME": homes[0]}, **quiet)
        subprocess.run(
            [options.binary, "user", "add", USER, "--admin", "--password-stdin"], input=PASSWORD + "\n", text=True,
            env={**os.environ, "PODY_HOME": homes[1]}, **quiet,
        )
        # The same pods for both: created at the engine, found by the original by their names and adopted by ours. One has a
        # device request, because the original's inspect fails on a pod without one, and is never started.
        made = [raw_create(f"{PREFIX}-{USER}-p{number}", {"Image": IMAGE, "Tty": True, "HostConfig": {}}) for number in range(PODS - 1)]
        gpus.assign([pid for container in made[:3] for pid in processes_in(container)])
        held = {"DeviceRequests": [{"Driver": "nvidia", "DeviceIDs": ["0"], "Capabilities": [["gpu"]]}]}
        engine("POST", f"/containers/create?name={PREFIX}-{USER}-held", {"Image": IMAGE, "Tty": True, "HostConfig": held})

        ports = [free_port(), free_port()]
        original = Server("original", [original_bin / "pody-serve", "--host", "127.0.0.1", "--port", str(ports[0])], ports[0], homes[0], gpus)
        servers.append(original)
        ours = Server("pody", [options.binary, "serve", "--host", "127.0.0.1", "--port", str(ports[1])], ports[1], homes[1], gpus)
        servers.append(ours)
        deadline = time.monotonic() + 20
        while len(ours.get("/pod/list")[1]) < PODS:
            if time.monotonic() > deadline:
                raise RuntimeError("the pods were not adopted")
            time.sleep(0.1)

        cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
        version = engine("GET", "/version")
        print(f"Measured on {os.cpu_count()} cores of {cpu}, Linux {platform.release()}, Docker {version['Version']}.")
        compare_reads(original, ours)
        original.stop()
        servers.remove(original)
        clean()
        ours.post("/pod/create", ins="template", image=IMAGE)
        body = raw_body(engine("GET", f"/containers/{PREFIX}-{USER}-template/json"))
        compare_changes(ours, body)
        compare_burst(ours, body)
        ours.stop()
        servers.remove(ours)
        clean()
        measure_sampler(options, config, homes[1])
    finally:
        for server in servers:
            server.stop()
        clean()
        for directory in [*homes, gpus.directory]:
            shutil.rmtree(directory, ignore_errors=True)


main()
