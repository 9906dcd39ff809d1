"""The inner side of the sandbox: closes every door behind itself, then becomes the program.

Handed as text to a bare interpreter, inside bubblewrap or alone, so it imports nothing of rlreason. One JSON argument says
what to do (`sandbox.py` writes it). It reports on the error stream: `ready` as its last act before the program, or what
went wrong. What it leaves behind is one process that cannot become two: it may have threads, yet no child, so that
fork bombs and daemons do not begin, and a limit of one process is a limit of the whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import stat
import struct
import sys
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
DIE_WITH_PARENT, NO_NEW_PRIVS, SECCOMP, AMBIENT = 1, 38, 22, 47  # prctl's
NEW_USER, NEW_REST = 0x10000000, 0x6E020000  # REST: mount, cgroup, uts, ipc, pid and net namespaces
BIND, REC, PRIVATE, REMOUNT, READ_ONLY, NO_SUID, NO_DEV = 0x1000, 0x4000, 0x40000, 0x20, 1, 2, 4
MOUNT_SETATTR, LANDLOCK = 442, 444  # these numbers are the same on every architecture

# System calls by name: their numbers on (x86_64, aarch64), 0 where there is none. From the kernel's unistd.h.
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH
# fmt: off
FORBIDDEN = {
    # another process, or its attributes
    "fork": (57, 0), "vfork": (58, 0), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "kcmp": (312, 272),
    "process_mrelease": (448, 448), "setpriority": (141, 140), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the network, and everything else that a socket can reach; pairs of connected sockets remain
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467),
    # attributes of files: Landlock does not know them
    "chmod": (90, 0), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, 0),
    "fchown": (93, 55), "lchown": (94, 0), "fchownat": (260, 54), "utime": (132, 0), "utimes": (235, 0),
    "futimesat": (261, 0), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "inotify_init": (253, 0), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    # memory that no limit of a process counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
    # doors into the kernel that no program under test needs
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "personality": (135, 92), "syslog": (103, 116), "quotactl": (179, 60), "swapon": (167, 224),
}
ABSENT = {"clone3": (435, 435)}  # answers "no such call": its flags cannot be read here, and libc then falls back on clone
OF_ITSELF = {  # allowed where the first argument is the process itself, or 0
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
}
TO_ITSELF = {"kill": (62, 129), "tgkill": (234, 131)}  # 0 would be the process group
BARRED_VALUES = {  # name: (numbers, argument, its barred values)
    "prctl": ((157, 167), 0, (DIE_WITH_PARENT,)),  # it must not outlive who watches it
    "fcntl": ((72, 25), 1, (8, 15)),  # F_SETOWN, F_SETOWN_EX: signals by way of the kernel
    "ioctl": ((16, 29), 1, (0x5412, 0x541C, 0x8901, 0x8902)),  # TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP
}
# fmt: on
CLONE, CLONE_THREAD = (56, 220), 0x10000
SOCKETPAIR, NO_STREAM = (53, 199), 6  # bits of SOCK_DGRAM and SOCK_SEQPACKET: a datagram can be sent to any address


def system_call_filter(machine: str, pid: int) -> bytes:
    """The seccomp filter for process `pid`, as instructions of classic BPF. KeyError where `machine` is not known."""
    column, architecture = ARCHITECTURES[machine]
    load, equal, at_least, bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, no_permission, no_call = 0x7FFF0000, 0x80000000, 0x50001, 0x50026  # EPERM, ENOSYS
    argument = [16, 24]  # where the low words of the first two arguments are
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, kill), (load, 0, 0, 0)]
    if machine == "x86_64":
        code += [(at_least, 0, 1, 0x40000000), (end, 0, 0, no_call)]  # x32: the same calls under other numbers

    def rule(numbers: tuple[int, int], body: list[tuple[int, int, int, int]]) -> None:
        if numbers[column]:
            code.extend([(equal, 0, len(body), numbers[column]), *body])

    for numbers in FORBIDDEN.values():
        rule(numbers, [(end, 0, 0, no_permission)])
    for numbers in ABSENT.values():
        rule(numbers, [(end, 0, 0, no_call)])
    for numbers in OF_ITSELF.values():
        rule(
            numbers,
            [(load, 0, 0, argument[0]), (equal, 2, 0, pid), (equal, 1, 0, 0), (end, 0, 0, no_permission), (end, 0, 0, allow)],
        )
    for numbers in TO_ITSELF.values():
        rule(numbers, [(load, 0, 0, argument[0]), (equal, 1, 0, pid), (end, 0, 0, no_permission), (end, 0, 0, allow)])
    for numbers, place, values in BARRED_VALUES.values():
        barred = [(equal, len(values) - i, 0, value) for i, value in enumerate(values)]
        rule(numbers, [(load, 0, 0, argument[place]), *barred, (end, 0, 0, allow), (end, 0, 0, no_permission)])
    rule(CLONE, [(load, 0, 0, argument[0]), (bit, 1, 0, CLONE_THREAD), (end, 0, 0, no_permission), (end, 0, 0, allow)])
    rule(SOCKETPAIR, [(load, 0, 0, argument[1]), (bit, 0, 1, NO_STREAM), (end, 0, 0, no_permission), (end, 0, 0, allow)])
    code.append((end, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *line) for line in code)


def call(name: str, *arguments: Any) -> int:
    """A function of the C library; OSError where it fails."""
    result: int = getattr(LIBC, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def die_with_parent() -> None:
    call("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def mount_scratch(at: str, want: dict[str, Any]) -> None:
    owner = f"uid={want['uid']},gid={want['uid']}," if want["uid"] else ""
    mount("tmpfs", at, "tmpfs", NO_SUID | NO_DEV, f"{owner}mode=700,size={want['scratch']},nr_inodes=1024")


def new_namespaces(privileged: bool) -> bool:
    """Leave the host's namespaces, for this process's children; False where the kernel does not let us."""
    uid, gid = os.getuid(), os.getgid()
    try:
        call("unshare", NEW_REST if privileged else NEW_USER | NEW_REST)
    except OSError:
        return False  # Landlock and the filter stand without them
    if not privileged:
        for file, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{file}", "w") as out:
                out.write(line)
    return True


def new_root(want: dict[str, Any]) -> bool:
    """A root of its own, of nothing but what may be read, and a scratch folder; False where mounting is not allowed."""
    try:
        mount("none", "/", "", REC | PRIVATE)
        sources = {path: os.open(path, os.O_PATH) for path in want["read"] if not os.path.islink(path)}
        links = {path: os.readlink(path) for path in want["read"] if os.path.islink(path)}
        mount("tmpfs", "/tmp", "tmpfs", NO_SUID, "size=64k,mode=755")  # covers what is there: the root to be
    except PermissionError:
        return False
    for path, target in links.items():
        os.symlink(target, f"/tmp{path}")
    for path, source in sources.items():
        inside = f"/tmp{path}"
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if stat.S_ISDIR(os.fstat(source).st_mode):
            os.makedirs(inside, exist_ok=True)
        else:
            os.close(os.open(inside, os.O_CREAT, 0o644))
        mount(f"/proc/self/fd/{source}", inside, "", BIND | REC)
        if not path.startswith("/dev/"):
            attributes = struct.pack("QQQQ", READ_ONLY | NO_SUID | NO_DEV, 0, 0, 0)
            call("syscall", MOUNT_SETATTR, -100, inside.encode(), 0x8000, attributes, len(attributes))  # recursively
        os.close(source)
    os.mkdir("/tmp/scratch")
    mount_scratch("/tmp/scratch", want)
    os.chdir("/tmp")
    call("pivot_root", b".", b".")
    call("umount2", b".", 2)  # the old root, which now lies on top
    os.chdir("/")
    mount("none", "/", "", REMOUNT | BIND | READ_ONLY)
    return True


def landlock(want: dict[str, Any], scratch: bool) -> None:
    """Nothing may be opened but `read` and the scratch folder; no TCP; no signals or abstract sockets to the outside."""
    abi = call("syscall", LANDLOCK, None, 0, 1)
    files = (1 << (16 if abi >= 5 else 15)) - 1
    rules = struct.pack("QQQ", files, 3, 3 if abi >= 6 else 0)[: 24 if abi >= 6 else 16]
    ruleset = call("syscall", LANDLOCK, rules, len(rules), 0)
    read, read_file, write_file = 0b1101, 0b101, 0b110  # execute, read file, read folder
    allowed = {path: read if os.path.isdir(path) else read_file for path in want["read"]} | {"/dev/null": write_file}
    if scratch:
        allowed["/scratch"] = files & ~1
    for path, access in allowed.items():
        file = os.open(path, os.O_PATH)
        call("syscall", LANDLOCK + 1, ruleset, 1, struct.pack("=Qi", access, file), 0)
        os.close(file)
    call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
    call("syscall", LANDLOCK + 2, ruleset, 0)
    os.close(ruleset)


def confine(want: dict[str, Any]) -> None:
    """What holds in every kind of sandbox: another user where there is a choice, limits, no rights, few system calls."""
    if want["uid"]:  # a user that nobody else is: the kernel counts the threads of root for nothing
        os.setgroups([])
        os.setresgid(*[want["uid"]] * 3)
        os.setresuid(*[want["uid"]] * 3)
    call("prctl", AMBIENT, 4, 0, 0, 0)  # clear all
    call("capset", struct.pack("II", 0x20080522, 0), bytes(24))
    die_with_parent()  # after the change of user, which would undo it
    for name, value in want["limits"].items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))
    call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
    code = system_call_filter(os.uname().machine, os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    call("prctl", SECCOMP, 2, header, 0, 0)


def become(want: dict[str, Any], scratch: bool, status: int, null: int, parent: int) -> NoReturn:
    """The program, if whoever reads the other end of the pipe `parent` is still there to end it."""
    os.chdir("/scratch" if scratch else "/")
    confine(want)
    os.set_blocking(parent, False)
    with contextlib.suppress(BlockingIOError):  # nothing to read yet: the other end is open
        os.read(parent, 1)
        os._exit(1)
    os.dup2(null, 2)
    os.write(status, b"ready")
    try:
        os.execve(want["run"][0], want["run"], want["environment"])
    except OSError as error:
        os.write(status, f"{want['run'][0]}: {error}".encode())
        os._exit(1)


def supervise(want: dict[str, Any], status: int, null: int) -> NoReturn:
    """Without bubblewrap: a child in namespaces of its own; ends with it, and ends it when told to end."""
    separate = new_namespaces(bool(want["uid"]))
    die_with_parent()  # after the new user namespace, which would undo it
    if os.getppid() != want["parent"]:
        os._exit(1)
    watched, watching = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    child = os.fork()
    if not child:
        os.close(watching)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            os.setsid()
            scratch = separate and new_root(want)
            landlock(want, scratch)
            become(want, scratch, status, null, watched)
        except OSError as error:
            os.write(status, str(error).encode())
        os._exit(1)
    os.close(watched)
    for stream in (0, 1):
        os.dup2(null, stream)  # so that the program's closing of its streams is the closing of its streams
    os.close(status)
    os.dup2(null, 2)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def main() -> None:
    want = json.loads(sys.argv[1])
    status = os.dup(2)  # closed by exec
    null = os.open("/dev/null", os.O_RDWR)
    try:
        if want["kind"] == "landlock":
            supervise(want, status, null)
        mount_scratch("/scratch", want)
        become(want, True, status, null, os.pipe()[0])  # bubblewrap looks after its own death
    except (OSError, KeyError, ValueError) as error:
        os.write(status, f"{error}".encode())
        os._exit(1)


if __name__ == "__main__":
    main()
