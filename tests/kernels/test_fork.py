"""A fork while other threads are inside a kernel: the child computes the same, and does not hang."""

import os
import subprocess
import sys
import textwrap

import pytest

from dctps.kernels import runnable_variants

PROGRAM = """
    import os, signal, sys, threading, time
    import torch
    from dctps.kernels import linear_forward, release_scratch
    from tests.support.drawn import Drawn

    torch.set_num_threads(int(sys.argv[1]))
    # Blocks of scratch above 64 kB, which the threads take and give under one lock; with two the batch
    # is shared out, so that this thread has a pool of OpenMP's, which no child has.
    d = Drawn.draw("dct", 60, 64, 2048 if sys.argv[1] == "2" else 48, 300)

    def product():
        return linear_forward(d.x, d.values, d.support, d.alpha, d.bias, d.form, 60)

    want, stop = product().numpy().tobytes(), False

    def work(call):
        while not stop:
            call()

    calls = product, release_scratch, release_scratch
    threads = [threading.Thread(target=work, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for i in range(int(sys.argv[2])):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)  # a child that hangs dies of it
            same = all(product().numpy().tobytes() == want for _ in range(3))
            os._exit(0 if same else 3)
        status = os.waitpid(pid, 0)[1]
        if status:
            print("child", i, "ended with", status)
            os._exit(1)
    stop = True
    print("done")
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.skipif(not runnable_variants(), reason="the native kernels were not compiled")
@pytest.mark.parametrize(("threads", "forks"), [(1, 40), (2, 5)])
def test_a_child_of_a_fork_amid_kernels_goes_on(threads: int, forks: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(threads), str(forks)],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.stdout == "done\n", done.stdout + done.stderr[-2000:]
