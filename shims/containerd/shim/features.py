"""The features document of the OCI runtime spec (features.md), for ``-info``.

It promises what the launch plan carries out, and a test compares the two. Left out is what callers
must not expect: hooks would run on the host, where the container's process is not; with user
namespaces or id-mapped mounts containerd would prepare a root file system that we build otherwise.
"""

from __future__ import annotations

__all__ = ["FEATURES"]

FEATURES = """\
{"ociVersionMin": "1.0.0", "ociVersionMax": "1.2.1", "mountOptions": ["acl", "async", "atime",
"bind", "defaults", "dev", "diratime", "dirsync", "exec", "iversion", "lazytime", "loud",
"mand", "noacl", "noatime", "nodev", "nodiratime", "noexec", "noiversion", "nolazytime",
"nomand", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "private", "ratime", "rbind",
"rdev", "rdiratime", "relatime", "rexec", "rnoatime", "rnodev", "rnodiratime", "rnoexec",
"rnorelatime", "rnostrictatime", "rnosuid", "rnosymfollow", "ro", "rprivate", "rrelatime",
"rro", "rrw", "rshared", "rslave", "rstrictatime", "rsuid", "rsymfollow", "runbindable", "rw",
"shared", "silent", "slave", "strictatime", "suid", "symfollow", "sync", "unbindable"], "linux":
{"namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "uts"], "capabilities":
["CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF",
"CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
"CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE",
"CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE",
"CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
"CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE",
"CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE",
"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM"], "cgroup": {"v1": false, "v2": true,
"systemd": false, "systemdUser": false, "rdma": false}, "seccomp": {"enabled": true, "actions":
["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
"SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"], "operators":
["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
"SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"], "archs": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM",
"SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL",
"SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PARISC", "SCMP_ARCH_PARISC64",
"SCMP_ARCH_PPC", "SCMP_ARCH_PPC64", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390",
"SCMP_ARCH_S390X", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"], "knownFlags":
["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC",
"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], "supportedFlags": ["SECCOMP_FILTER_FLAG_LOG",
"SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]}, "apparmor": {"enabled": false},
"selinux": {"enabled": false}, "intelRdt": {"enabled": false}, "mountExtensions": {"idmap":
{"enabled": false}}, "netDevices": {"enabled": false}}}
"""
