"""The system calls that a program may make, with their numbers. Anything else is refused.

The list was measured: under strace the honest corpus (tests/adversarial/honest_*.py, with NumPy and threads) makes
36 different calls, and none but asyncio's socketpair is refused. To those were added the variants that another C
library, Python or architecture uses for the same thing (`open` beside `openat`), and what Python's os, time and signal
offer about the process itself. tests/sandbox/test_seccomp.py compares the numbers with the kernel's headers.

Missing on purpose: everything that creates a process, a socket, a descriptor of another process, shared memory or a
lock that another worker could see; chmod, chown, utimes and xattrs, which Landlock does not cover.
"""

Pair = tuple[int | None, int | None]
"""a call's numbers on (x86_64, aarch64); None where the architecture has no such call"""


def _numbers(table: str) -> dict[str, Pair]:
    """Lines of `name=x86_64/aarch64`, with - for None; # begins a comment."""
    calls = [entry.partition("=") for line in table.splitlines() for entry in line.partition("#")[0].split()]
    both = {name: numbers.split("/") for name, _, numbers in calls}
    return {name: (_number(x86_64), _number(aarch64)) for name, (x86_64, aarch64) in both.items()}


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)


ALLOWED = _numbers("""
# descriptors
read=0/63 write=1/64 readv=19/65 writev=20/66 pread64=17/67 pwrite64=18/68 preadv=295/69
pwritev=296/70 close=3/57 close_range=436/436 lseek=8/62 dup=32/23 dup2=33/- dup3=292/24 pipe=22/-
pipe2=293/59 poll=7/- ppoll=271/73 select=23/- pselect6=270/72 epoll_create1=291/20 epoll_ctl=233/21
epoll_wait=232/- epoll_pwait=281/22 sendfile=40/71
# files
open=2/- openat=257/56 fstat=5/80 stat=4/- lstat=6/- newfstatat=262/79 statx=332/291 statfs=137/43
fstatfs=138/44 access=21/- faccessat=269/48 faccessat2=439/439 readlink=89/- readlinkat=267/78
getcwd=79/17 chdir=80/49 fchdir=81/50 mkdir=83/- mkdirat=258/34 rmdir=84/- unlink=87/-
unlinkat=263/35 rename=82/- renameat=264/38 renameat2=316/276 symlink=88/- symlinkat=266/36
ftruncate=77/46 fallocate=285/47 fadvise64=221/223 fsync=74/82 fdatasync=75/83 getdents64=217/61
umask=95/166
# memory
munmap=11/215 mremap=25/216 mprotect=10/226 madvise=28/233 brk=12/214 msync=26/227 mincore=27/232
# threads, of this process only (clone is filtered by its flags)
futex=202/98 set_robust_list=273/99 set_tid_address=218/96 rseq=334/293 sched_yield=24/124
sched_getaffinity=204/123 sched_getparam=143/121 sched_get_priority_max=146/125
sched_get_priority_min=147/126 exit=60/93 exit_group=231/94 restart_syscall=219/128
# signals, to itself only (kill and tgkill are filtered by their first argument)
rt_sigaction=13/134 rt_sigprocmask=14/135 rt_sigreturn=15/139 rt_sigtimedwait=128/137
rt_sigsuspend=130/133 rt_sigpending=127/136 sigaltstack=131/132 setitimer=38/103 getitimer=36/102
alarm=37/- pause=34/-
# questions about itself
gettid=186/178 getpid=39/172 getppid=110/173 getpgrp=111/- getpgid=121/155 getsid=124/156
getuid=102/174 geteuid=107/175 getgid=104/176 getegid=108/177 getresuid=118/148 getresgid=120/150
getgroups=115/158 getpriority=140/141 getrlimit=97/163 getrusage=98/165
times=100/153 uname=63/160 sysinfo=99/179 getcpu=309/168 arch_prctl=158/-
prlimit64=302/261 # to ask about itself; a new limit is answered, not taken
# time and chance
clock_gettime=228/113 clock_getres=229/114 clock_nanosleep=230/115 nanosleep=35/101
gettimeofday=96/169 time=201/- getrandom=318/278
""")

# Allowed with some arguments only; seccomp.py says which.
FILTERED = _numbers("""
mmap=9/222 clone=56/220 kill=62/129 tgkill=234/131 fcntl=72/25 ioctl=16/29 prctl=157/167
""")
# What the supervisor needs beside all that: to start, measure and end the runner, and to lock it down.
SUPERVISOR = _numbers("""
fork=57/- vfork=58/- wait4=61/260 waitid=247/95 pidfd_open=434/434 pidfd_send_signal=424/424
memfd_create=319/279 socketpair=53/199 sendto=44/206 recvfrom=45/207 sendmsg=46/211 recvmsg=47/212
setrlimit=160/164 landlock_restrict_self=446/446 seccomp=317/277
chmod=90/- fchmodat=268/53 # to empty /tmp
""")
# No honest program asks for these: the process is killed and the verdict is SV, not an exception it could catch.
HOSTILE = _numbers("""
ptrace=101/117 process_vm_readv=310/270 process_vm_writev=311/271 process_madvise=440/440
pidfd_getfd=438/438 kcmp=312/272 bpf=321/280 perf_event_open=298/241 io_uring_setup=425/425
io_uring_enter=426/426 io_uring_register=427/427 keyctl=250/219 add_key=248/217 request_key=249/218
userfaultfd=323/282 mount=165/40 umount2=166/39 open_tree=428/428 move_mount=429/429 fsopen=430/430
fsconfig=431/431 fsmount=432/432 fspick=433/433 mount_setattr=442/442 pivot_root=155/41
chroot=161/51 unshare=272/97 setns=308/268 name_to_handle_at=303/264 open_by_handle_at=304/265
init_module=175/105 finit_module=313/273 delete_module=176/106 kexec_load=246/104
kexec_file_load=320/294 reboot=169/142 swapon=167/224 swapoff=168/225 sethostname=170/161
setdomainname=171/162 settimeofday=164/170 clock_settime=227/112 acct=163/89 quotactl=179/60
iopl=172/- ioperm=173/- modify_ldt=154/- fanotify_init=300/262 landlock_create_ruleset=444/444
""")

CLONE3 = (435, 435)  # its flags lie in memory that a filter cannot read: ENOSYS makes the C library fall back to clone
OTHERS = _numbers("capset=126/91 landlock_add_rule=445/445")
"""What the worker calls before any filter is on, and no table above has."""
COLUMNS = {"x86_64": 0, "aarch64": 1}
