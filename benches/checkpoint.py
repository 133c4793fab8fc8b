"""Measures checkpoints and restores: see checkpoint.sh."""

import argparse
import base64
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

IMAGE = "pody-base:latest"
MIB = 1 << 20
ROUNDS = 10

# Holds memory, or fills /dev/shm, and keeps writing the time: the largest gap is how long it was frozen.
PROGRAM = """
import os, sys, time
where, size = sys.argv[1], int(sys.argv[2])
block = os.urandom(1 << 20)
if where == 'memory':
    blob = bytearray()
    for n in range(size): blob += bytes([n & 255]) + block[1:]
else:
    with open('/dev/shm/blob', 'wb') as f:
        for n in range(size): f.write(bytes([n & 255]) + block[1:])
last, gap = time.monotonic(), 0.0
os.makedirs('/run/bench', exist_ok=True)
while True:
    now = time.monotonic()
    gap = max(gap, now - last)
    if os.path.exists('/run/bench/reset'):
        os.unlink('/run/bench/reset'); gap = 0.0
    with open('/run/bench/new', 'w') as f: f.write('%f %f' % (now, gap))
    os.rename('/run/bench/new', '/run/bench/tick')
    last = now
    time.sleep(0.002)
"""


def run(*words, **options):
    return subprocess.run(words, check=True, capture_output=True, text=True, **options).stdout.strip()


def timed(work):
    started = time.monotonic()
    value = work()
    return time.monotonic() - started, value


def directory_size(path):
    return sum(os.lstat(f).st_size for f in glob.glob(os.path.join(path, "**"), recursive=True) if os.path.isfile(f))


def copies():
    return set(glob.glob("/tmp/ctrd-checkpoint*"))


def tick(container, engine="docker"):
    """When the program last wrote the time, and its largest gap."""
    text = run(engine, "exec", container, "cat", "/run/bench/tick").split()
    return float(text[0]), float(text[1])


def reset(container, engine="docker"):
    run(engine, "exec", container, "touch", "/run/bench/reset")
    time.sleep(0.1)


def wait_ticking(container, beyond=0.0, engine="docker"):
    for _ in range(3000):
        try:
            if tick(container, engine)[0] > beyond:
                return
        except (subprocess.CalledProcessError, IndexError, ValueError):
            pass
        time.sleep(0.02)
    raise SystemExit(f"{container} does not tick")


class Pody:
    """A daemon of its own."""

    def __init__(self, binary):
        self.home = tempfile.mkdtemp(prefix="pody-bench-", dir="/var/tmp")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        with open(f"{self.home}/config.toml", "w") as config:
            config.write(
                'name_prefix = "ckbench"\navailable_ports = "33000-33100"\n[default_quota]\ngpus = "none"\nshm_size = "8g"\n'
                '[[images]]\nname = "pody-base"\nports = [22]\n'
            )
        environment = dict(os.environ, PODY_HOME=self.home)
        run(binary, "user", "add", "bench", "bench-secret", env=environment)
        log = open(f"{self.home}/log", "w")
        serve = [binary, "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(serve, env=environment, stdout=log, stderr=log)
        for _ in range(200):
            try:
                self.request("GET", "/pod/list")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        raise SystemExit("the daemon does not start")

    def request(self, method, path, **form):
        data = urllib.parse.urlencode(form).encode() if method == "POST" else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, method=method)
        request.add_header("Authorization", "Basic " + base64.b64encode(b"bench:bench-secret").decode())
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def act(self, path, **form):
        action = self.request("POST", path, **form)
        while action["status"] == "running":
            time.sleep(0.01)
            action = self.request("GET", f"/action/status?id={action['id']}")
        if action["status"] != "done":
            raise SystemExit(f"{path}: {action['error']}")
        return action

    def end(self):
        for name in self.request("GET", "/pod/list"):
            self.request("POST", "/pod/delete", ins=name)
        for row in self.request("GET", "/pod/checkpoints"):
            self.request("POST", "/checkpoint/delete", checkpoint=row["id"])
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        shutil.rmtree(self.home)


def start_program(container, where, size):
    run("docker", "exec", "-i", container, "sh", "-c", "cat > /root/bench.py", input=PROGRAM)
    line = f"nohup setsid python3 /root/bench.py {where} {size} >/dev/null 2>&1 </dev/null & sleep 0.3"
    run("docker", "exec", container, "sh", "-c", line)
    wait_ticking(container)


def measure_engine(where, size):
    name = "ckbench-engine"
    subprocess.run(["docker", "rm", "-f", name], capture_output=True)
    run("docker", "run", "-d", "--name", name, "--hostname", name, "--shm-size", "8g", "--init=false", IMAGE)
    start_program(name, where, size)
    reset(name)
    before = copies()
    total, _ = timed(lambda: run("docker", "checkpoint", "create", "--leave-running", name, "one"))
    wait_ticking(name, tick(name)[0])
    freeze = tick(name)[1]
    run("docker", "checkpoint", "rm", name, "one")
    run("docker", "checkpoint", "create", name, "two")
    root = run("docker", "info", "-f", "{{.DockerRootDir}}")
    identity = run("docker", "inspect", "-f", "{{.Id}}", name)
    images = directory_size(f"{root}/containers/{identity}/checkpoints/two")
    restore, _ = timed(lambda: run("docker", "start", "--checkpoint", "two", name))
    wait_ticking(name)
    leaked = copies() - before
    leaked_bytes = sum(map(directory_size, leaked))
    run("docker", "rm", "-f", name)
    # This run made them, so it removes them.
    for directory in leaked:
        shutil.rmtree(directory)
    return {"freeze": freeze, "total": total, "restore": restore, "images": images, "leaked": leaked_bytes}


def measure_pody(pody, where, size, rounds=1):
    pody.request("POST", "/pod/create", ins="main", image=IMAGE)
    container = "ckbench-bench-main"
    start_program(container, where, size)
    reset(container)
    before = copies()
    total, action = timed(lambda: pody.act("/pod/checkpoint", ins="main"))
    wait_ticking(container, tick(container)[0])
    freeze = tick(container)[1]
    directory = f"{pody.home}/checkpoints/{action['checkpoint']}"
    images = sum(os.path.getsize(f) for f in glob.glob(f"{directory}/checkpoint/*"))
    stored = directory_size(directory)
    restores = []
    for _ in range(rounds):
        pody.request("POST", "/pod/stop", ins="main")
        restores.append(timed(lambda: pody.act("/pod/restore", ins="main"))[0])
        wait_ticking(container)
    leaked = sum(map(directory_size, copies() - before))
    pody.request("POST", "/pod/delete", ins="main")
    pody.request("POST", "/checkpoint/delete", checkpoint=action["checkpoint"])
    return {
        "freeze": freeze, "total": total, "restore": sorted(restores)[len(restores) // 2], "images": images,
        "stored": stored, "leaked": leaked,
    }


def podman(*words):
    return run("podman", "--runtime", "runc", *words)


def measure_podman(where, size):
    if not shutil.which("podman"):
        return None
    if subprocess.run(["podman", "image", "exists", IMAGE], check=False).returncode:
        run("sh", "-c", f"docker save {IMAGE} | podman load")
    name, archive = "ckbench-podman", "/var/tmp/ckbench-podman.tar"
    limits = ["--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096"]
    podman("run", "-d", "--name", name, "--shm-size", "8g", *limits, IMAGE, "python3", "-c", PROGRAM, where, str(size))
    options = ["--tcp-established", "--file-locks"]
    export = ["--compress", "none", "--export", archive]
    try:
        wait_ticking(name, engine="podman")
        reset(name, "podman")
        total, _ = timed(lambda: podman("container", "checkpoint", *options, "--leave-running", *export, name))
        wait_ticking(name, tick(name, "podman")[0], "podman")
        freeze = tick(name, "podman")[1]
        images = os.path.getsize(archive)
        podman("container", "checkpoint", *options, *export, name)
        podman("rm", "-f", name)
        restore, _ = timed(lambda: podman("container", "restore", *options, "--import", archive))
        wait_ticking(name, engine="podman")
    finally:
        podman("rm", "-f", "--time", "0", name)
        os.unlink(archive)
    return {"freeze": freeze, "total": total, "restore": restore, "images": images, "leaked": 0}


def disk():
    path = "/var/tmp/ckbench-disk"
    seconds, _ = timed(lambda: run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=1024", "conv=fdatasync"))
    os.unlink(path)
    return 1024 * MIB / seconds


def row(name, result, base=None):
    if result is None:
        return f"| {name} | not installed | | | | |"
    def ratio(key):
        return f" ({base[key] / result[key]:.1f}×)" if base else ""
    return (
        f"| {name} | {result['freeze']:.2f} s{ratio('freeze')} | {result['total']:.2f} s | "
        f"{result['restore']:.2f} s{ratio('restore')} | {result['images'] / MIB:.0f} MiB | {result['leaked'] / MIB:.0f} MiB |"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--shm", type=int, default=512, help="MiB of /dev/shm; 0 leaves it out")
    parser.add_argument("sizes", nargs="*", type=int, default=[64, 1024, 4096])
    arguments = parser.parse_args()
    print(f"Raw disk: {disk() / MIB:.0f} MiB/s\n")
    pody = Pody(os.path.abspath(arguments.binary))
    try:
        cases = [("memory", size) for size in arguments.sizes]
        cases += [("shm", arguments.shm)] if arguments.shm else []
        for at, (where, size) in enumerate(cases):
            engine = measure_engine(where, size)
            ours = measure_pody(pody, where, size, ROUNDS if at == 0 else 3)
            print(f"{size} MiB of {'memory' if where == 'memory' else '/dev/shm'}\n")
            print("| | frozen | until durable | restore | images | left behind |\n| --- | --- | --- | --- | --- | --- |")
            print(row("docker checkpoint", engine))
            print(row("podman", measure_podman(where, size)))
            print(row("pody", ours, engine))
            print(f"\nWritten by pody: {ours['stored'] / ours['images']:.3f} of the images\n", flush=True)
    finally:
        pody.end()


if __name__ == "__main__":
    main()
