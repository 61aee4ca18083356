/* The guest's first process: mounts, drivers, then the tick. It stays process 1 for the life of the guest.
 *
 * It is C and not a shell script because under emulation every fork and exec costs 5 to 10 ms, and time to first
 * tick is what every start, reboot and recovery test waits for. Drivers the first tick does not need (network,
 * power button, balloon) are loaded beside it by a child.
 */
#define _GNU_SOURCE
#include "tick.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
    if (fd >= 0)
        close(fd);
    text[n < 0 ? 0 : n] = 0;
    return n > 0;
}

/* True when the PCI bus has a device whose `attribute` (vendor, class) starts with `hex`. */
static int pci_has(const char *attribute, const char *hex)
{
    DIR *dir = opendir("/sys/bus/pci/devices");
    struct dirent *entry;
    int found = 0;
    while (dir && !found && (entry = readdir(dir))) {
        char path[320], text[32];
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", entry->d_name, attribute);
        found = read_text(path, text, sizeof text) && strncmp(text, hex, strlen(hex)) == 0;
    }
    if (dir)
        closedir(dir);
    return found;
}

static int wanted(const char *when)
{
    if (strcmp(when, "virtio") == 0)
        return pci_has("vendor", "0x1af4");
    if (strcmp(when, "ide") == 0)
        return pci_has("class", "0x0101");
    return 1;
}

/* Reads lines `phase when module` of /modules in their order, which is the order of dependence. */
static void load_modules(const char *phase)
{
    char line[128], in_phase[16], when[16], module[64];
    FILE *list = fopen("/modules", "re");
    while (list && fgets(line, sizeof line, list)) {
        char path[96];
        if (sscanf(line, "%15s %15s %63s", in_phase, when, module) != 3 || strcmp(in_phase, phase) != 0)
            continue;
        if (!wanted(when))
            continue;
        snprintf(path, sizeof path, "/modules.d/%s.ko", module);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != ENODEV && errno != EEXIST))
            printf("module %s: %s\n", module, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    if (list)
        fclose(list);
}

/* The value of `key=` on the kernel command line, or NULL. */
static const char *cmdline_value(char *cmdline, const char *key, char *value, size_t size)
{
    for (char *at = cmdline; (at = strstr(at, key)); at++) {
        if (at != cmdline && at[-1] != ' ')
            continue;
        snprintf(value, size, "%.*s", (int)strcspn(at + strlen(key), " \n"), at + strlen(key));
        return value;
    }
    return NULL;
}

static pid_t load_the_rest(void)
{
    pid_t child = fork();
    if (child != 0)
        return child;
    load_modules("late");
    execl("/bin/busybox", "sh", "/rc", (char *)NULL);
    _exit(127);
}

/* Asks for all the CPU there is, and for none that the tick wants. */
static void burn(void)
{
    if (fork() != 0)
        return;
    if (nice(19) == -1)
        _exit(1);
    for (volatile unsigned long spins = 0;; spins++)
        ;
}

int main(void)
{
    static char cmdline[4096];
    char disk[16], name[32], flag[4];
    struct ring ring = {0};

    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    int console = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
    dup2(console, STDOUT_FILENO);
    dup2(console, STDERR_FILENO);
    setvbuf(stdout, NULL, _IOLBF, 512);

    read_text("/proc/cmdline", cmdline, sizeof cmdline);
    load_modules("early");
    if (cmdline_value(cmdline, "tick.name=", name, sizeof name))
        memcpy(ring.name, name, strlen(name));
    if (cmdline_value(cmdline, "tick.burn=", flag, sizeof flag))
        burn();
    ring_open(&ring, cmdline_value(cmdline, "tick.disk=", disk, sizeof disk));
    tick_forever(&ring, console, load_the_rest());
}
