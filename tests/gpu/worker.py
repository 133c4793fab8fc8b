"""Takes GPU memory, and computes if asked to, until it is killed. Needs only the driver's libcuda.

Usage: worker.py DEVICE MIB busy|idle
"""

import ctypes
import sys
import time


def main():
    device, mib, busy = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "busy"
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name, *arguments):
        code = getattr(cuda, name)(*arguments)
        if code != 0:
            sys.exit(f"{name}: CUDA error {code}")

    handle, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    call("cuInit", ctypes.c_uint(0))
    call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(device))
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    call("cuCtxSetCurrent", context)
    size = mib << 20
    call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(size))
    # Touched once, so that it is really allocated.
    call("cuMemsetD32_v2", memory, ctypes.c_uint(0), ctypes.c_size_t(size // 4))
    call("cuCtxSynchronize")
    print("ready", flush=True)
    value = 0
    while True:
        if not busy:
            time.sleep(1)
            continue
        # A kernel that writes all of it: a hundred at a time, so that Python's own time does not show.
        for _ in range(100):
            value = (value + 1) & 0xFFFFFFFF
            call("cuMemsetD32_v2", memory, ctypes.c_uint(value), ctypes.c_size_t(size // 4))
        call("cuCtxSynchronize")


main()
