/* What only PID 1 does: make a bare initramfs a place where containers can run, and end it. */
#ifndef VOID_BOOT_H
#define VOID_BOOT_H

#define BOOT_CGROUP_ROOT "/sys/fs/cgroup/void"

/* Mounts, console, cgroups, in that order. 0 or -errno: there is no point in going on. */
int boot_prepare(void);

/* Brings a network interface up, if it is not. 0 or -errno. */
int boot_link_up(const char *name);

/* Powers the VM off; in a test nothing calls it. */
_Noreturn void boot_power_off(void);

#endif
