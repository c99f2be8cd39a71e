"""A Python host: eight threads that run sandboxes, and forks in the midst of it."""

import ctypes
import os
import sys
import threading

library = ctypes.CDLL(sys.argv[1])  # CDLL lets go of the interpreter's lock.
run = lambda command: library.cofferdam_test_run(command.encode())

failures = []


def work(number):
    for i in range(10):
        code = number * 10 + i
        got = run(f"exit {code}")
        if got != code:
            failures.append(f"thread {number}: {got} instead of {code}")


def forked(code):
    """Runs a sandbox in a forked child and returns how that ended."""
    pid = os.fork()
    if pid == 0:
        import signal

        signal.alarm(30)  # A child that hangs is told by its signal.
        os._exit(run(f"exit {code}") & 0xFF)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


assert forked(9) == 9  # Before the library's first use here.
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for code in range(20, 40):
    got = forked(code)
    if got != code:
        failures.append(f"fork: {got} instead of {code}")
for thread in threads:
    thread.join()
assert run("exit 11") == 11
assert not failures, failures
print("\nhost: done", flush=True)
