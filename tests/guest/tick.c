/* The guest's main job, and everything it says on /dev/ttyS0.
 *
 * What it prints (lines end in CR LF, the console is cooked and echoes its input):
 *
 *   boot <boot> resume-at <seq> disk=<vda|sda|none> slots=<n> name=<tick.name>
 *   tick <seq> <mono_ms> gap=<ms> real=<ms since 1970>     gap: mono_ms since the tick before
 *   ready button=<devices> mem=<MiB>                       late drivers are in; the power button works from here on
 *   stopped <ms>                                           the guest did not run for that long (see below)
 *   disk-error <seq> <reason>                              this tick is not on disk; the same seq is tried again
 *   power-button | bye <poweroff|reboot> <last seq>
 *
 * What it reads:
 *
 *   ping X            `pong X`
 *   dirty N [WS]      `dirtying N WS`: N MiB/s of memory writes over a set of WS MiB (16); 0 ends it
 *   sh COMMAND        busybox sh -c COMMAND, its output on the console, then `sh-exit <code>`
 *   poweroff, reboot, crash
 *
 * Which clock shows a blackout. CLOCK_MONOTONIC and CLOCK_REALTIME are both fed by the virtual machine's own
 * clock, which QEMU halts while the guest is paused or handed over: `gap` stays near 100 across a migration and
 * shows only a guest that is starved while it runs. What goes on is the battery clock (QEMU reads the host's):
 * at each of its seconds we compare it with CLOCK_MONOTONIC, and print `stopped` when they moved apart by more
 * than STOPPED_MS_MIN. The finest measure is outside: the time at which the host receives the lines.
 */
#define _GNU_SOURCE
#include "tick.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <linux/rtc.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define TICK_MS 100
/* Jitter of an emulated guest reaches 16 ms on a busy host. */
#define STOPPED_MS_MIN 20
#define DIRTY_STEP_MS 10
#define DIRTY_SET_MIB 16
#define BUTTONS_MAX 4

enum { POLL_TIMER, POLL_CONSOLE, POLL_RTC, POLL_BUTTONS, POLL_COUNT = POLL_BUTTONS + BUTTONS_MAX };

static struct ring *ring;
static struct pollfd polls[POLL_COUNT];
static pid_t late_child, dirty_child, sh_child;

static uint64_t now_ms(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void tick(void)
{
    static uint64_t last_mono_ms;
    uint64_t mono_ms = now_ms(CLOCK_MONOTONIC), real_ms = now_ms(CLOCK_REALTIME);
    int error = ring_write(ring, mono_ms, real_ms);
    if (error) {
        printf("disk-error %llu %s\n", (unsigned long long)ring->next_seq, strerror(error));
        return;
    }
    printf("tick %llu %llu gap=%llu real=%llu\n", (unsigned long long)ring->next_seq,
           (unsigned long long)mono_ms, (unsigned long long)(last_mono_ms ? mono_ms - last_mono_ms : 0),
           (unsigned long long)real_ms);
    last_mono_ms = mono_ms;
    ring->next_seq++;
}

static void leave(const char *word, int how)
{
    printf("bye %s %lld\n", word, (long long)ring->next_seq - 1);
    tcdrain(STDOUT_FILENO);
    sync();
    reboot(how);
}

/* Touches pages at an even pace. One word a page is enough: the hypervisor sends whole pages. */
static void dirty_forever(uint64_t mib_s, uint64_t set_mib)
{
    uint64_t pages = set_mib * 256, at = 0, stamp = 0, done = 0, start_ms = now_ms(CLOCK_MONOTONIC);
    uint8_t *set = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (set == MAP_FAILED) {
        printf("dirty: no room for %llu MiB\n", (unsigned long long)set_mib);
        _exit(1);
    }
    for (;;) {
        uint64_t due = (now_ms(CLOCK_MONOTONIC) - start_ms) * mib_s * 256 / 1000;
        for (; done < due; done++, at = (at + 1) % pages)
            *(uint64_t *)(set + at * 4096) = ++stamp;
        poll(NULL, 0, DIRTY_STEP_MS);
    }
}

static void dirty(const char *args)
{
    unsigned long long mib_s = 0, set_mib = DIRTY_SET_MIB;
    sscanf(args, "%llu %llu", &mib_s, &set_mib);
    if (dirty_child > 0)
        kill(dirty_child, SIGKILL);
    dirty_child = 0;
    printf("dirtying %llu %llu\n", mib_s, set_mib);
    if (mib_s == 0 || set_mib == 0)
        return;
    dirty_child = fork();
    if (dirty_child == 0)
        dirty_forever(mib_s, set_mib);
}

static void crash(void)
{
    int fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "c", 1) != 1)
        printf("crash: %s\n", strerror(errno));
}

static void shell(const char *command)
{
    sh_child = fork();
    if (sh_child == 0) {
        execl("/bin/busybox", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
}

static void obey(char *line)
{
    line[strcspn(line, "\r\n")] = 0;
    if (strncmp(line, "ping ", 5) == 0)
        printf("pong %s\n", line + 5);
    else if (strncmp(line, "dirty ", 6) == 0)
        dirty(line + 6);
    else if (strncmp(line, "sh ", 3) == 0)
        shell(line + 3);
    else if (strcmp(line, "poweroff") == 0)
        leave("poweroff", RB_POWER_OFF);
    else if (strcmp(line, "reboot") == 0)
        leave("reboot", RB_AUTOBOOT);
    else if (strcmp(line, "crash") == 0)
        crash();
    else if (*line)
        printf("unknown `%s`; ping X, dirty N [WS], sh COMMAND, poweroff, reboot, crash\n", line);
}

/* The line discipline hands over whole lines, one a read. */
static void read_console(void)
{
    char line[512];
    ssize_t n = read(polls[POLL_CONSOLE].fd, line, sizeof line - 1);
    if (n <= 0)
        return;
    line[n] = 0;
    obey(line);
}

static void read_button(int fd)
{
    struct input_event event;
    while (read(fd, &event, sizeof event) == sizeof event) {
        if (event.type != EV_KEY || event.code != KEY_POWER || event.value != 1)
            continue;
        printf("power-button\n");
        leave("poweroff", RB_POWER_OFF);
    }
}

/* Every evdev node is a button here: the guest has no keyboard driver. */
static int open_buttons(void)
{
    DIR *dir = opendir("/dev/input");
    struct dirent *entry;
    int count = 0;
    while (dir && count < BUTTONS_MAX && (entry = readdir(dir))) {
        char path[300];
        if (strncmp(entry->d_name, "event", 5) != 0)
            continue;
        snprintf(path, sizeof path, "/dev/input/%s", entry->d_name);
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0)
            polls[POLL_BUTTONS + count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    if (dir)
        closedir(dir);
    return count;
}

static void reap(void)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == late_child) {
            struct sysinfo info;
            sysinfo(&info);
            printf("ready button=%d mem=%lu\n", open_buttons(), info.totalram * info.mem_unit >> 20);
        }
        if (pid == sh_child)
            printf("sh-exit %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    }
}

static void read_rtc(void)
{
    static uint64_t last_mono_ms, last_rtc_ms;
    unsigned long ignored;
    struct rtc_time t;
    int fd = polls[POLL_RTC].fd;
    if (read(fd, &ignored, sizeof ignored) < 0 || ioctl(fd, RTC_RD_TIME, &t) != 0)
        return;
    struct tm tm = {.tm_sec = t.tm_sec, .tm_min = t.tm_min, .tm_hour = t.tm_hour,
                    .tm_mday = t.tm_mday, .tm_mon = t.tm_mon, .tm_year = t.tm_year};
    uint64_t mono_ms = now_ms(CLOCK_MONOTONIC), rtc_ms = (uint64_t)timegm(&tm) * 1000;
    int64_t stopped_ms = (int64_t)(rtc_ms - last_rtc_ms) - (int64_t)(mono_ms - last_mono_ms);
    if (last_rtc_ms && stopped_ms > STOPPED_MS_MIN)
        printf("stopped %lld\n", (long long)stopped_ms);
    last_mono_ms = mono_ms;
    last_rtc_ms = rtc_ms;
}

static void open_clocks(void)
{
    struct itimerspec every = {.it_interval.tv_nsec = TICK_MS * 1000000, .it_value.tv_nsec = 1};
    polls[POLL_TIMER].fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    timerfd_settime(polls[POLL_TIMER].fd, 0, &every, NULL);
    polls[POLL_RTC].fd = open("/dev/rtc0", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (polls[POLL_RTC].fd >= 0)
        ioctl(polls[POLL_RTC].fd, RTC_UIE_ON, 0);
}

void tick_forever(struct ring *the_ring, int console, pid_t late)
{
    ring = the_ring;
    late_child = late;
    for (int i = 0; i < POLL_COUNT; i++)
        polls[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    printf("boot %llu resume-at %llu disk=%s slots=%llu name=%s\n", (unsigned long long)ring->boot,
           (unsigned long long)ring->next_seq, ring->disk, (unsigned long long)ring->slots, ring->name);
    polls[POLL_CONSOLE].fd = console;
    open_clocks();
    for (;;) {
        uint64_t expired;
        poll(polls, POLL_COUNT, -1);
        if (polls[POLL_TIMER].revents && read(polls[POLL_TIMER].fd, &expired, sizeof expired) == sizeof expired) {
            tick();
            reap();
        }
        if (polls[POLL_CONSOLE].revents)
            read_console();
        if (polls[POLL_RTC].revents)
            read_rtc();
        for (int i = 0; i < BUTTONS_MAX; i++)
            if (polls[POLL_BUTTONS + i].revents)
                read_button(polls[POLL_BUTTONS + i].fd);
    }
}
