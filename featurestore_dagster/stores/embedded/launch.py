"""Program that gives up root, detaches itself and becomes a server: run as a file by `processes`, with nothing but the standard library.

A program of its own, because between fork and exec a threaded parent must not run Python code. Deciding who to become does not belong here.
"""

import argparse
import ctypes
import os
import sys

CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2


def main() -> None:
    """Become the command after the options; with `--detach` print its process id and return at once."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--user-id", type=int)
    parser.add_argument("--group-id", type=int)
    parser.add_argument("--keep-file-access", action="store_true")
    parser.add_argument("--detach", metavar="LOG")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if arguments.detach:
        _detach(arguments.detach)
    if arguments.user_id is not None:
        _give_up_root(arguments.user_id, arguments.group_id, keep_file_access=arguments.keep_file_access)
    os.umask(0o077)
    os.execv(arguments.command[0], arguments.command)  # noqa: S606 - no shell is the point


def _detach(log_path: str) -> None:
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if child := os.fork():
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        os._exit(0)
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _give_up_root(user_id: int, group_id: int, *, keep_file_access: bool) -> None:
    os.setgroups([])
    os.setgid(group_id)
    libc = ctypes.CDLL(None, use_errno=True)
    if keep_file_access:
        _check(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setuid(user_id)
    if keep_file_access:
        bit = 1 << CAP_DAC_OVERRIDE
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        low_and_high_words = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # each: effective, permitted, inheritable
        _check(libc.capset(header, low_and_high_words))
        _check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main()
