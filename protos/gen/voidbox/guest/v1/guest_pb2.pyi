from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProcessPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROCESS_PHASE_UNSPECIFIED: _ClassVar[ProcessPhase]
    PROCESS_PHASE_CREATED: _ClassVar[ProcessPhase]
    PROCESS_PHASE_RUNNING: _ClassVar[ProcessPhase]
    PROCESS_PHASE_EXITED: _ClassVar[ProcessPhase]

class Where(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WHERE_UNSPECIFIED: _ClassVar[Where]
    WHERE_GUEST: _ClassVar[Where]
    WHERE_ROOTFS: _ClassVar[Where]

class Stream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_UNSPECIFIED: _ClassVar[Stream]
    STREAM_STDOUT: _ClassVar[Stream]
    STREAM_STDERR: _ClassVar[Stream]
PROCESS_PHASE_UNSPECIFIED: ProcessPhase
PROCESS_PHASE_CREATED: ProcessPhase
PROCESS_PHASE_RUNNING: ProcessPhase
PROCESS_PHASE_EXITED: ProcessPhase
WHERE_UNSPECIFIED: Where
WHERE_GUEST: Where
WHERE_ROOTFS: Where
STREAM_UNSPECIFIED: Stream
STREAM_STDOUT: Stream
STREAM_STDERR: Stream

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("protocol", "wall_clock_ns", "entropy", "hostname", "machine_id", "resync_token", "lonely_poweroff_ms")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WALL_CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    RESYNC_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LONELY_POWEROFF_MS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    wall_clock_ns: int
    entropy: bytes
    hostname: str
    machine_id: str
    resync_token: bytes
    lonely_poweroff_ms: int
    def __init__(self, protocol: _Optional[int] = ..., wall_clock_ns: _Optional[int] = ..., entropy: _Optional[bytes] = ..., hostname: _Optional[str] = ..., machine_id: _Optional[str] = ..., resync_token: _Optional[bytes] = ..., lonely_poweroff_ms: _Optional[int] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("protocol", "init_version", "kernel_release", "architecture", "uptime_ns", "containers", "last_event")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    INIT_VERSION_FIELD_NUMBER: _ClassVar[int]
    KERNEL_RELEASE_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    UPTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    init_version: str
    kernel_release: str
    architecture: str
    uptime_ns: int
    containers: _containers.RepeatedCompositeFieldContainer[ContainerState]
    last_event: int
    def __init__(self, protocol: _Optional[int] = ..., init_version: _Optional[str] = ..., kernel_release: _Optional[str] = ..., architecture: _Optional[str] = ..., uptime_ns: _Optional[int] = ..., containers: _Optional[_Iterable[_Union[ContainerState, _Mapping]]] = ..., last_event: _Optional[int] = ...) -> None: ...

class ContainerState(_message.Message):
    __slots__ = ("container_id", "processes")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    processes: _containers.RepeatedCompositeFieldContainer[ProcessState]
    def __init__(self, container_id: _Optional[str] = ..., processes: _Optional[_Iterable[_Union[ProcessState, _Mapping]]] = ...) -> None: ...

class ProcessState(_message.Message):
    __slots__ = ("exec_id", "pid", "phase", "exit_status", "exited_at_ns")
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    EXITED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    exec_id: str
    pid: int
    phase: ProcessPhase
    exit_status: int
    exited_at_ns: int
    def __init__(self, exec_id: _Optional[str] = ..., pid: _Optional[int] = ..., phase: _Optional[_Union[ProcessPhase, str]] = ..., exit_status: _Optional[int] = ..., exited_at_ns: _Optional[int] = ...) -> None: ...

class ContainerRef(_message.Message):
    __slots__ = ("container_id",)
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    def __init__(self, container_id: _Optional[str] = ...) -> None: ...

class ProcessRef(_message.Message):
    __slots__ = ("container_id", "exec_id")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ...) -> None: ...

class ProcessStarted(_message.Message):
    __slots__ = ("pid",)
    PID_FIELD_NUMBER: _ClassVar[int]
    pid: int
    def __init__(self, pid: _Optional[int] = ...) -> None: ...

class LaunchPlan(_message.Message):
    __slots__ = ("container_id", "namespaces", "cgroup", "steps", "rootfs", "process", "time_offsets")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ROOTFS_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    TIME_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    namespaces: _containers.RepeatedCompositeFieldContainer[Namespace]
    cgroup: Cgroup
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    rootfs: bytes
    process: ProcessPlan
    time_offsets: _containers.RepeatedCompositeFieldContainer[TimeOffset]
    def __init__(self, container_id: _Optional[str] = ..., namespaces: _Optional[_Iterable[_Union[Namespace, _Mapping]]] = ..., cgroup: _Optional[_Union[Cgroup, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., rootfs: _Optional[bytes] = ..., process: _Optional[_Union[ProcessPlan, _Mapping]] = ..., time_offsets: _Optional[_Iterable[_Union[TimeOffset, _Mapping]]] = ...) -> None: ...

class TimeOffset(_message.Message):
    __slots__ = ("clock", "seconds", "nanoseconds")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    NANOSECONDS_FIELD_NUMBER: _ClassVar[int]
    clock: int
    seconds: int
    nanoseconds: int
    def __init__(self, clock: _Optional[int] = ..., seconds: _Optional[int] = ..., nanoseconds: _Optional[int] = ...) -> None: ...

class Namespace(_message.Message):
    __slots__ = ("kind", "join_container")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Namespace.Kind]
        KIND_MOUNT: _ClassVar[Namespace.Kind]
        KIND_PID: _ClassVar[Namespace.Kind]
        KIND_IPC: _ClassVar[Namespace.Kind]
        KIND_UTS: _ClassVar[Namespace.Kind]
        KIND_NETWORK: _ClassVar[Namespace.Kind]
        KIND_CGROUP: _ClassVar[Namespace.Kind]
        KIND_TIME: _ClassVar[Namespace.Kind]
    KIND_UNSPECIFIED: Namespace.Kind
    KIND_MOUNT: Namespace.Kind
    KIND_PID: Namespace.Kind
    KIND_IPC: Namespace.Kind
    KIND_UTS: Namespace.Kind
    KIND_NETWORK: Namespace.Kind
    KIND_CGROUP: Namespace.Kind
    KIND_TIME: Namespace.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    JOIN_CONTAINER_FIELD_NUMBER: _ClassVar[int]
    kind: Namespace.Kind
    join_container: str
    def __init__(self, kind: _Optional[_Union[Namespace.Kind, str]] = ..., join_container: _Optional[str] = ...) -> None: ...

class Cgroup(_message.Message):
    __slots__ = ("path", "writes", "device_filter")
    PATH_FIELD_NUMBER: _ClassVar[int]
    WRITES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FILTER_FIELD_NUMBER: _ClassVar[int]
    path: str
    writes: _containers.RepeatedCompositeFieldContainer[CgroupWrite]
    device_filter: bytes
    def __init__(self, path: _Optional[str] = ..., writes: _Optional[_Iterable[_Union[CgroupWrite, _Mapping]]] = ..., device_filter: _Optional[bytes] = ...) -> None: ...

class CgroupWrite(_message.Message):
    __slots__ = ("file", "value", "optional")
    FILE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    file: str
    value: str
    optional: bool
    def __init__(self, file: _Optional[str] = ..., value: _Optional[str] = ..., optional: _Optional[bool] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("mount", "node", "symlink", "directory", "sysctl", "mask", "readonly", "hostname", "pivot", "link_up", "remount")
    MOUNT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SYMLINK_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    SYSCTL_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    READONLY_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    PIVOT_FIELD_NUMBER: _ClassVar[int]
    LINK_UP_FIELD_NUMBER: _ClassVar[int]
    REMOUNT_FIELD_NUMBER: _ClassVar[int]
    mount: MountStep
    node: NodeStep
    symlink: SymlinkStep
    directory: DirectoryStep
    sysctl: SysctlStep
    mask: MaskStep
    readonly: ReadonlyStep
    hostname: HostnameStep
    pivot: PivotStep
    link_up: LinkUpStep
    remount: RemountStep
    def __init__(self, mount: _Optional[_Union[MountStep, _Mapping]] = ..., node: _Optional[_Union[NodeStep, _Mapping]] = ..., symlink: _Optional[_Union[SymlinkStep, _Mapping]] = ..., directory: _Optional[_Union[DirectoryStep, _Mapping]] = ..., sysctl: _Optional[_Union[SysctlStep, _Mapping]] = ..., mask: _Optional[_Union[MaskStep, _Mapping]] = ..., readonly: _Optional[_Union[ReadonlyStep, _Mapping]] = ..., hostname: _Optional[_Union[HostnameStep, _Mapping]] = ..., pivot: _Optional[_Union[PivotStep, _Mapping]] = ..., link_up: _Optional[_Union[LinkUpStep, _Mapping]] = ..., remount: _Optional[_Union[RemountStep, _Mapping]] = ...) -> None: ...

class MountStep(_message.Message):
    __slots__ = ("source_kind", "source", "where", "target", "fstype", "flags", "data", "propagation", "make_target", "set_attributes", "clear_attributes", "wait_ms", "copy_up", "source_subpath")
    class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SOURCE_UNSPECIFIED: _ClassVar[MountStep.Source]
        SOURCE_NONE: _ClassVar[MountStep.Source]
        SOURCE_PATH: _ClassVar[MountStep.Source]
        SOURCE_DISK: _ClassVar[MountStep.Source]
        SOURCE_TAG: _ClassVar[MountStep.Source]
        SOURCE_ROOTFS_PATH: _ClassVar[MountStep.Source]
    SOURCE_UNSPECIFIED: MountStep.Source
    SOURCE_NONE: MountStep.Source
    SOURCE_PATH: MountStep.Source
    SOURCE_DISK: MountStep.Source
    SOURCE_TAG: MountStep.Source
    SOURCE_ROOTFS_PATH: MountStep.Source
    SOURCE_KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FSTYPE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PROPAGATION_FIELD_NUMBER: _ClassVar[int]
    MAKE_TARGET_FIELD_NUMBER: _ClassVar[int]
    SET_ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CLEAR_ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    COPY_UP_FIELD_NUMBER: _ClassVar[int]
    SOURCE_SUBPATH_FIELD_NUMBER: _ClassVar[int]
    source_kind: MountStep.Source
    source: bytes
    where: Where
    target: bytes
    fstype: str
    flags: int
    data: bytes
    propagation: int
    make_target: bool
    set_attributes: int
    clear_attributes: int
    wait_ms: int
    copy_up: bool
    source_subpath: bytes
    def __init__(self, source_kind: _Optional[_Union[MountStep.Source, str]] = ..., source: _Optional[bytes] = ..., where: _Optional[_Union[Where, str]] = ..., target: _Optional[bytes] = ..., fstype: _Optional[str] = ..., flags: _Optional[int] = ..., data: _Optional[bytes] = ..., propagation: _Optional[int] = ..., make_target: _Optional[bool] = ..., set_attributes: _Optional[int] = ..., clear_attributes: _Optional[int] = ..., wait_ms: _Optional[int] = ..., copy_up: _Optional[bool] = ..., source_subpath: _Optional[bytes] = ...) -> None: ...

class NodeStep(_message.Message):
    __slots__ = ("where", "path", "mode", "major", "minor", "uid", "gid")
    WHERE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MAJOR_FIELD_NUMBER: _ClassVar[int]
    MINOR_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    where: Where
    path: bytes
    mode: int
    major: int
    minor: int
    uid: int
    gid: int
    def __init__(self, where: _Optional[_Union[Where, str]] = ..., path: _Optional[bytes] = ..., mode: _Optional[int] = ..., major: _Optional[int] = ..., minor: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ...) -> None: ...

class SymlinkStep(_message.Message):
    __slots__ = ("where", "path", "target")
    WHERE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    where: Where
    path: bytes
    target: bytes
    def __init__(self, where: _Optional[_Union[Where, str]] = ..., path: _Optional[bytes] = ..., target: _Optional[bytes] = ...) -> None: ...

class DirectoryStep(_message.Message):
    __slots__ = ("where", "path", "mode", "uid", "gid")
    WHERE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    where: Where
    path: bytes
    mode: int
    uid: int
    gid: int
    def __init__(self, where: _Optional[_Union[Where, str]] = ..., path: _Optional[bytes] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ...) -> None: ...

class SysctlStep(_message.Message):
    __slots__ = ("path", "value", "optional")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    value: bytes
    optional: bool
    def __init__(self, path: _Optional[bytes] = ..., value: _Optional[bytes] = ..., optional: _Optional[bool] = ...) -> None: ...

class MaskStep(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class ReadonlyStep(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    def __init__(self, path: _Optional[bytes] = ...) -> None: ...

class HostnameStep(_message.Message):
    __slots__ = ("hostname", "domainname")
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    DOMAINNAME_FIELD_NUMBER: _ClassVar[int]
    hostname: str
    domainname: str
    def __init__(self, hostname: _Optional[str] = ..., domainname: _Optional[str] = ...) -> None: ...

class PivotStep(_message.Message):
    __slots__ = ("readonly", "propagation")
    READONLY_FIELD_NUMBER: _ClassVar[int]
    PROPAGATION_FIELD_NUMBER: _ClassVar[int]
    readonly: bool
    propagation: int
    def __init__(self, readonly: _Optional[bool] = ..., propagation: _Optional[int] = ...) -> None: ...

class LinkUpStep(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemountStep(_message.Message):
    __slots__ = ("path", "flags")
    PATH_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    flags: int
    def __init__(self, path: _Optional[bytes] = ..., flags: _Optional[int] = ...) -> None: ...

class ProcessPlan(_message.Message):
    __slots__ = ("args", "env", "cwd", "terminal", "rows", "columns", "uid", "gid", "additional_gids", "umask", "capabilities", "rlimits", "no_new_privileges", "oom_score_adj", "seccomp", "seccomp_flags", "stdin", "stdout", "stderr", "io_priority", "scheduler", "cpu_affinity", "personality")
    ARGS_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    ADDITIONAL_GIDS_FIELD_NUMBER: _ClassVar[int]
    UMASK_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    RLIMITS_FIELD_NUMBER: _ClassVar[int]
    NO_NEW_PRIVILEGES_FIELD_NUMBER: _ClassVar[int]
    OOM_SCORE_ADJ_FIELD_NUMBER: _ClassVar[int]
    SECCOMP_FIELD_NUMBER: _ClassVar[int]
    SECCOMP_FLAGS_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    IO_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    CPU_AFFINITY_FIELD_NUMBER: _ClassVar[int]
    PERSONALITY_FIELD_NUMBER: _ClassVar[int]
    args: _containers.RepeatedScalarFieldContainer[bytes]
    env: _containers.RepeatedScalarFieldContainer[bytes]
    cwd: bytes
    terminal: bool
    rows: int
    columns: int
    uid: int
    gid: int
    additional_gids: _containers.RepeatedScalarFieldContainer[int]
    umask: int
    capabilities: Capabilities
    rlimits: _containers.RepeatedCompositeFieldContainer[Rlimit]
    no_new_privileges: bool
    oom_score_adj: int
    seccomp: bytes
    seccomp_flags: int
    stdin: bool
    stdout: bool
    stderr: bool
    io_priority: int
    scheduler: Scheduler
    cpu_affinity: bytes
    personality: int
    def __init__(self, args: _Optional[_Iterable[bytes]] = ..., env: _Optional[_Iterable[bytes]] = ..., cwd: _Optional[bytes] = ..., terminal: _Optional[bool] = ..., rows: _Optional[int] = ..., columns: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., additional_gids: _Optional[_Iterable[int]] = ..., umask: _Optional[int] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., rlimits: _Optional[_Iterable[_Union[Rlimit, _Mapping]]] = ..., no_new_privileges: _Optional[bool] = ..., oom_score_adj: _Optional[int] = ..., seccomp: _Optional[bytes] = ..., seccomp_flags: _Optional[int] = ..., stdin: _Optional[bool] = ..., stdout: _Optional[bool] = ..., stderr: _Optional[bool] = ..., io_priority: _Optional[int] = ..., scheduler: _Optional[_Union[Scheduler, _Mapping]] = ..., cpu_affinity: _Optional[bytes] = ..., personality: _Optional[int] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("bounding", "effective", "permitted", "inheritable", "ambient")
    BOUNDING_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    PERMITTED_FIELD_NUMBER: _ClassVar[int]
    INHERITABLE_FIELD_NUMBER: _ClassVar[int]
    AMBIENT_FIELD_NUMBER: _ClassVar[int]
    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int
    def __init__(self, bounding: _Optional[int] = ..., effective: _Optional[int] = ..., permitted: _Optional[int] = ..., inheritable: _Optional[int] = ..., ambient: _Optional[int] = ...) -> None: ...

class Rlimit(_message.Message):
    __slots__ = ("resource", "soft", "hard")
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    SOFT_FIELD_NUMBER: _ClassVar[int]
    HARD_FIELD_NUMBER: _ClassVar[int]
    resource: int
    soft: int
    hard: int
    def __init__(self, resource: _Optional[int] = ..., soft: _Optional[int] = ..., hard: _Optional[int] = ...) -> None: ...

class Scheduler(_message.Message):
    __slots__ = ("policy", "nice", "priority", "flags", "runtime", "deadline", "period")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    policy: int
    nice: int
    priority: int
    flags: int
    runtime: int
    deadline: int
    period: int
    def __init__(self, policy: _Optional[int] = ..., nice: _Optional[int] = ..., priority: _Optional[int] = ..., flags: _Optional[int] = ..., runtime: _Optional[int] = ..., deadline: _Optional[int] = ..., period: _Optional[int] = ...) -> None: ...

class CreateContainerRequest(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: LaunchPlan
    def __init__(self, plan: _Optional[_Union[LaunchPlan, _Mapping]] = ...) -> None: ...

class AddProcessRequest(_message.Message):
    __slots__ = ("container_id", "exec_id", "process")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    process: ProcessPlan
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., process: _Optional[_Union[ProcessPlan, _Mapping]] = ...) -> None: ...

class SignalProcessRequest(_message.Message):
    __slots__ = ("container_id", "exec_id", "signal", "all")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    signal: int
    all: bool
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., signal: _Optional[int] = ..., all: _Optional[bool] = ...) -> None: ...

class ProcessList(_message.Message):
    __slots__ = ("processes",)
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    processes: _containers.RepeatedCompositeFieldContainer[ProcessInfo]
    def __init__(self, processes: _Optional[_Iterable[_Union[ProcessInfo, _Mapping]]] = ...) -> None: ...

class ProcessInfo(_message.Message):
    __slots__ = ("pid", "exec_id", "declared")
    PID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    DECLARED_FIELD_NUMBER: _ClassVar[int]
    pid: int
    exec_id: str
    declared: bool
    def __init__(self, pid: _Optional[int] = ..., exec_id: _Optional[str] = ..., declared: _Optional[bool] = ...) -> None: ...

class NextEventsRequest(_message.Message):
    __slots__ = ("after", "wait_ms")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    after: int
    wait_ms: int
    def __init__(self, after: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class EventList(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("sequence", "at_ns", "exited", "oom", "disk")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    EXITED_FIELD_NUMBER: _ClassVar[int]
    OOM_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    at_ns: int
    exited: ProcessExited
    oom: OutOfMemory
    disk: DiskChanged
    def __init__(self, sequence: _Optional[int] = ..., at_ns: _Optional[int] = ..., exited: _Optional[_Union[ProcessExited, _Mapping]] = ..., oom: _Optional[_Union[OutOfMemory, _Mapping]] = ..., disk: _Optional[_Union[DiskChanged, _Mapping]] = ...) -> None: ...

class ProcessExited(_message.Message):
    __slots__ = ("container_id", "exec_id", "pid", "exit_status")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    pid: int
    exit_status: int
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., pid: _Optional[int] = ..., exit_status: _Optional[int] = ...) -> None: ...

class OutOfMemory(_message.Message):
    __slots__ = ("container_id", "kills")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    KILLS_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    kills: int
    def __init__(self, container_id: _Optional[str] = ..., kills: _Optional[int] = ...) -> None: ...

class DiskChanged(_message.Message):
    __slots__ = ("serial", "present")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    serial: str
    present: bool
    def __init__(self, serial: _Optional[str] = ..., present: _Optional[bool] = ...) -> None: ...

class ReadStdioRequest(_message.Message):
    __slots__ = ("container_id", "exec_id", "stream", "limit")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    stream: Stream
    limit: int
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., stream: _Optional[_Union[Stream, str]] = ..., limit: _Optional[int] = ...) -> None: ...

class StdioData(_message.Message):
    __slots__ = ("data", "end")
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    end: bool
    def __init__(self, data: _Optional[bytes] = ..., end: _Optional[bool] = ...) -> None: ...

class WriteStdioRequest(_message.Message):
    __slots__ = ("container_id", "exec_id", "data", "end")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    data: bytes
    end: bool
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., data: _Optional[bytes] = ..., end: _Optional[bool] = ...) -> None: ...

class ResizeTerminalRequest(_message.Message):
    __slots__ = ("container_id", "exec_id", "rows", "columns")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    exec_id: str
    rows: int
    columns: int
    def __init__(self, container_id: _Optional[str] = ..., exec_id: _Optional[str] = ..., rows: _Optional[int] = ..., columns: _Optional[int] = ...) -> None: ...

class FreezeRequest(_message.Message):
    __slots__ = ("container_id", "frozen")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    frozen: bool
    def __init__(self, container_id: _Optional[str] = ..., frozen: _Optional[bool] = ...) -> None: ...

class UpdateCgroupRequest(_message.Message):
    __slots__ = ("container_id", "writes")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    WRITES_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    writes: _containers.RepeatedCompositeFieldContainer[CgroupWrite]
    def __init__(self, container_id: _Optional[str] = ..., writes: _Optional[_Iterable[_Union[CgroupWrite, _Mapping]]] = ...) -> None: ...

class StatsReply(_message.Message):
    __slots__ = ("files", "interfaces")
    FILES_FIELD_NUMBER: _ClassVar[int]
    INTERFACES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[CgroupFile]
    interfaces: _containers.RepeatedCompositeFieldContainer[Interface]
    def __init__(self, files: _Optional[_Iterable[_Union[CgroupFile, _Mapping]]] = ..., interfaces: _Optional[_Iterable[_Union[Interface, _Mapping]]] = ...) -> None: ...

class CgroupFile(_message.Message):
    __slots__ = ("name", "content")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    content: bytes
    def __init__(self, name: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class Interface(_message.Message):
    __slots__ = ("name", "rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    RX_PACKETS_FIELD_NUMBER: _ClassVar[int]
    RX_ERRORS_FIELD_NUMBER: _ClassVar[int]
    RX_DROPPED_FIELD_NUMBER: _ClassVar[int]
    TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    TX_PACKETS_FIELD_NUMBER: _ClassVar[int]
    TX_ERRORS_FIELD_NUMBER: _ClassVar[int]
    TX_DROPPED_FIELD_NUMBER: _ClassVar[int]
    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int
    def __init__(self, name: _Optional[str] = ..., rx_bytes: _Optional[int] = ..., rx_packets: _Optional[int] = ..., rx_errors: _Optional[int] = ..., rx_dropped: _Optional[int] = ..., tx_bytes: _Optional[int] = ..., tx_packets: _Optional[int] = ..., tx_errors: _Optional[int] = ..., tx_dropped: _Optional[int] = ...) -> None: ...

class TelemetrySample(_message.Message):
    __slots__ = ("at_ns", "cpu_busy_ns", "cpu_total_ns", "memory_total_bytes", "memory_available_bytes", "processes_running", "open_files", "interfaces")
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    CPU_BUSY_NS_FIELD_NUMBER: _ClassVar[int]
    CPU_TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_RUNNING_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    INTERFACES_FIELD_NUMBER: _ClassVar[int]
    at_ns: int
    cpu_busy_ns: int
    cpu_total_ns: int
    memory_total_bytes: int
    memory_available_bytes: int
    processes_running: int
    open_files: int
    interfaces: _containers.RepeatedCompositeFieldContainer[Interface]
    def __init__(self, at_ns: _Optional[int] = ..., cpu_busy_ns: _Optional[int] = ..., cpu_total_ns: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., processes_running: _Optional[int] = ..., open_files: _Optional[int] = ..., interfaces: _Optional[_Iterable[_Union[Interface, _Mapping]]] = ...) -> None: ...

class WriteFileRequest(_message.Message):
    __slots__ = ("path", "kind", "mode", "uid", "gid", "data", "offset", "last", "in_place")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[WriteFileRequest.Kind]
        KIND_FILE: _ClassVar[WriteFileRequest.Kind]
        KIND_DIRECTORY: _ClassVar[WriteFileRequest.Kind]
        KIND_SYMLINK: _ClassVar[WriteFileRequest.Kind]
    KIND_UNSPECIFIED: WriteFileRequest.Kind
    KIND_FILE: WriteFileRequest.Kind
    KIND_DIRECTORY: WriteFileRequest.Kind
    KIND_SYMLINK: WriteFileRequest.Kind
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    IN_PLACE_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    kind: WriteFileRequest.Kind
    mode: int
    uid: int
    gid: int
    data: bytes
    offset: int
    last: bool
    in_place: bool
    def __init__(self, path: _Optional[bytes] = ..., kind: _Optional[_Union[WriteFileRequest.Kind, str]] = ..., mode: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., data: _Optional[bytes] = ..., offset: _Optional[int] = ..., last: _Optional[bool] = ..., in_place: _Optional[bool] = ...) -> None: ...

class ReadFileRequest(_message.Message):
    __slots__ = ("path", "offset", "limit")
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    offset: int
    limit: int
    def __init__(self, path: _Optional[bytes] = ..., offset: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class FileData(_message.Message):
    __slots__ = ("data", "end", "size", "mode")
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    end: bool
    size: int
    mode: int
    def __init__(self, data: _Optional[bytes] = ..., end: _Optional[bool] = ..., size: _Optional[int] = ..., mode: _Optional[int] = ...) -> None: ...

class RemoveFileRequest(_message.Message):
    __slots__ = ("path", "recursive")
    PATH_FIELD_NUMBER: _ClassVar[int]
    RECURSIVE_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    recursive: bool
    def __init__(self, path: _Optional[bytes] = ..., recursive: _Optional[bool] = ...) -> None: ...

class DiskRequest(_message.Message):
    __slots__ = ("serial", "wait_ms")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    serial: str
    wait_ms: int
    def __init__(self, serial: _Optional[str] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class DiskReply(_message.Message):
    __slots__ = ("device", "size_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: str
    size_bytes: int
    def __init__(self, device: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class NetworkPlan(_message.Message):
    __slots__ = ("links", "routes", "neighbours")
    LINKS_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    links: _containers.RepeatedCompositeFieldContainer[Link]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    neighbours: _containers.RepeatedCompositeFieldContainer[Neighbour]
    def __init__(self, links: _Optional[_Iterable[_Union[Link, _Mapping]]] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., neighbours: _Optional[_Iterable[_Union[Neighbour, _Mapping]]] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("match_mac", "name", "mac", "mtu", "addresses", "up")
    MATCH_MAC_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    match_mac: bytes
    name: str
    mac: bytes
    mtu: int
    addresses: _containers.RepeatedCompositeFieldContainer[IpAddress]
    up: bool
    def __init__(self, match_mac: _Optional[bytes] = ..., name: _Optional[str] = ..., mac: _Optional[bytes] = ..., mtu: _Optional[int] = ..., addresses: _Optional[_Iterable[_Union[IpAddress, _Mapping]]] = ..., up: _Optional[bool] = ...) -> None: ...

class IpAddress(_message.Message):
    __slots__ = ("address", "prefix", "broadcast", "scope")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    BROADCAST_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    address: bytes
    prefix: int
    broadcast: bytes
    scope: int
    def __init__(self, address: _Optional[bytes] = ..., prefix: _Optional[int] = ..., broadcast: _Optional[bytes] = ..., scope: _Optional[int] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("destination", "prefix", "gateway", "interface", "source", "metric", "scope", "onlink", "ipv6", "mtu", "advmss", "locked", "kind")
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    INTERFACE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    ONLINK_FIELD_NUMBER: _ClassVar[int]
    IPV6_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    ADVMSS_FIELD_NUMBER: _ClassVar[int]
    LOCKED_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    destination: bytes
    prefix: int
    gateway: bytes
    interface: str
    source: bytes
    metric: int
    scope: int
    onlink: bool
    ipv6: bool
    mtu: int
    advmss: int
    locked: int
    kind: int
    def __init__(self, destination: _Optional[bytes] = ..., prefix: _Optional[int] = ..., gateway: _Optional[bytes] = ..., interface: _Optional[str] = ..., source: _Optional[bytes] = ..., metric: _Optional[int] = ..., scope: _Optional[int] = ..., onlink: _Optional[bool] = ..., ipv6: _Optional[bool] = ..., mtu: _Optional[int] = ..., advmss: _Optional[int] = ..., locked: _Optional[int] = ..., kind: _Optional[int] = ...) -> None: ...

class Neighbour(_message.Message):
    __slots__ = ("address", "mac", "interface")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    INTERFACE_FIELD_NUMBER: _ClassVar[int]
    address: bytes
    mac: bytes
    interface: str
    def __init__(self, address: _Optional[bytes] = ..., mac: _Optional[bytes] = ..., interface: _Optional[str] = ...) -> None: ...
